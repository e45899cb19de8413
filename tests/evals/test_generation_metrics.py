"""Answers against references: measures worked out by hand, the libraries', and runs that go on."""

import json
import sys

import jax
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data, model_io
from gptneo_jax.data.documents import Document
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.evals import generation_metrics, llm_judge

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20


TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=2,
  window_size=8,
)  # fmt: skip


def make(tokenizer, seed):
  """A model at random, made without compiling `init`."""
  mesh, rng = model_io.first_device(), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(TINY, mesh),
  )
  lm = LanguageModel(model_io.Weights(TINY, params), mesh)
  lm.tokenizer = tokenizer
  return lm


@pytest.fixture(scope="module")
def lm():
  documents = [Document(TEXT, "", "here")]
  return make(data.load_tokenizer("train", documents=documents, vocab_size=280), seed=4)


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


QUESTIONS = [
  {"prompt": "the quick", "reference": "brown fox", "category": "animals"},
  {"prompt": "and the dog does not mind", "reference": ["it", "at all"], "category": "moods"},
  {"prompt": "jumps over", "reference": "the lazy dog", "category": "animals"},
  {"prompt": "the quick", "reference": "the quick"},
  {"prompt": "fox", "reference": "jumps", "category": "animals"},
]


# --- measures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "prediction, references, exact, f1",
  [
    ("The Cat!", ["a cat"], 1, 1),  # case, articles, punctuation
    ("cat", ["dog", "the cat."], 1, 1),  # the best reference
    ("the black cat sat", ["a cat sat down"], 0, 2 / 3),  # black cat sat | cat sat down
    ("cat cat cat", ["cat dog"], 0, 2 / 5),  # 1 of 3 and 1 of 2: common words count as often
    ("dog", ["cat"], 0, 0),
    ("", ["cat"], 0, 0),
    ("the", ["a"], 1, 1),  # both say nothing
    ("theatre an-other", ["theatre another"], 1, 1),  # articles only as words
    ("big cat", ["cat", "big dog cat"], 0, 4 / 5),
  ],
)
def test_exact_match_and_f1(prediction, references, exact, f1):
  scores = generation_metrics.score([prediction], [references])
  assert scores["exact_match"] == exact
  assert scores["f1"] == pytest.approx(f1, abs=1e-12)


def test_means_over_answers():
  scores = generation_metrics.score(["cat", "dog", "cat dog"], [["cat"], ["cat"], ["cat"]])
  assert scores["exact_match"] == pytest.approx(1 / 3)
  assert scores["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_bleu():
  """The example of sacrebleu's README, which gives 48.53 for references in unequal numbers too."""
  predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
  references = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
  ]
  assert generation_metrics.score(predictions, references)["bleu"] == pytest.approx(
    48.530827, abs=1e-5
  )
  perfect = [own[: 1 + i % 2] for i, own in enumerate(references)]
  assert generation_metrics.score([own[-1] for own in perfect], perfect)["bleu"] == pytest.approx(
    100
  )


def test_rouge():
  """police kill the gunman, from Lin (2004): ROUGE-2 and ROUGE-L in the paper."""
  reference = "police killed the gunman"
  scores = generation_metrics.score(["police kill the gunman"], [[reference]])
  assert scores["rouge1"] == pytest.approx(3 / 4)
  assert scores["rouge2"] == pytest.approx(1 / 3)
  assert scores["rougeL"] == pytest.approx(3 / 4)
  other = generation_metrics.score(["the gunman kill police"], [[reference, "no words"]])
  assert (other["rouge1"], other["rouge2"], other["rougeL"]) == pytest.approx((3 / 4, 1 / 3, 1 / 2))


def test_free_text():
  scores = generation_metrics.score(["a b a b a b a", "c d"], [["x"], ["x"]])
  assert scores["distinct_1"] == pytest.approx(4 / 9)
  assert scores["distinct_2"] == pytest.approx(3 / 7)  # ab, ba, cd
  assert scores["distinct_3"] == pytest.approx(2 / 5)
  assert scores["repetition_4"] == pytest.approx(1 - 2 / 4)  # abab, baba; of the first text alone
  assert scores["longest_repeat"] == pytest.approx((5 + 0) / 2)  # a b a b a, from 1 and from 3
  assert scores["mean_words"] == pytest.approx(9 / 2)
  short = generation_metrics.score(["", "word"], [["x"], ["x"]])
  assert not {"distinct_2", "repetition_4"} & set(short)
  assert (short["distinct_1"], short["longest_repeat"], short["mean_words"]) == (1, 0, 0.5)


@pytest.mark.parametrize(
  "text, words",
  [("a", 0), ("a a", 1), ("a b", 0), ("a b c x a b c y b c", 3), ("a a a a", 3), ("x a b y a b", 2)]
)  # fmt: skip
def test_longest_repeat(text, words):
  assert generation_metrics.score([text], [["x"]])["longest_repeat"] == words


def test_missing_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
  with pytest.raises(UserError, match=r"sacrebleu.* pip install 'gptneo_jax\[eval\]'"):
    generation_metrics.score(["a"], [["a"]])


def test_nothing_to_score():
  with pytest.raises(UserError, match="no answer"):
    generation_metrics.score([], [])


# --- runs -----------------------------------------------------------------------------------------


def test_run(lm, tmp_path):
  path = write(tmp_path / "questions.jsonl", QUESTIONS)
  report = generation_metrics.run(lm, path, max_new_tokens=12, batch_size=2)
  prompts = [q["prompt"] for q in QUESTIONS]
  pairs = [lm.generate(two, max_new_tokens=12) for two in (prompts[:2], prompts[2:4], prompts[3:])]
  expected = [text for pair in pairs for text in pair.texts]
  assert expected.pop(3) == expected[3]  # it stood in two pairs
  assert len(set(expected)) > 2
  assert [sample["prediction"] for sample in report["samples"]] == expected
  references = [q["reference"] for q in QUESTIONS]
  references = [[r] if isinstance(r, str) else r for r in references]
  assert report["metrics"] == {"count": 5, **generation_metrics.score(expected, references)}
  animals = [0, 2, 4]
  assert report["per_category"]["animals"] == {
    "count": 3,
    **generation_metrics.score([expected[i] for i in animals], [references[i] for i in animals]),
  }
  assert list(report["per_category"]) == ["animals", "moods"]
  assert report["judge"] is None
  json.dumps(report, allow_nan=False)
  assert (
    generation_metrics.run(lm, path, max_new_tokens=12, batch_size=2, limit=2)["samples"]
    == report["samples"][:2]
  )


def test_stop(lm, tmp_path):
  """An answer ends before the first of its stops."""
  whole = lm.generate(["the quick", "fox"], max_new_tokens=12).texts[0]
  stop = whole[len(whole) // 2 :][:2]
  record = {"prompt": "the quick", "reference": "x", "stop": ["never there", stop]}
  path = write(tmp_path / "q.jsonl", [record])
  (cut,) = generation_metrics.run(lm, path, max_new_tokens=12)["samples"]
  assert 0 < len(cut["prediction"]) < len(whole)
  assert cut["prediction"] == whole[: whole.index(stop)]


class Interrupted(Exception):
  pass


class Counting:
  """The model, counting the prompts it continues, and interrupted before a call."""

  def __init__(self, lm, fail_at=None):
    self._lm, self._fail_at, self.calls, self.prompts = lm, fail_at, 0, 0

  def __getattr__(self, name):
    return getattr(self._lm, name)

  def generate(self, prompts, **options):
    self.calls += 1
    if self.calls == self._fail_at:
      raise Interrupted
    self.prompts += len(prompts)
    return self._lm.generate(prompts, **options)


def test_interrupted_run_goes_on(lm, tmp_path):
  path, output = write(tmp_path / "questions.jsonl", QUESTIONS), str(tmp_path / "report.json")
  whole = generation_metrics.run(lm, path, max_new_tokens=12, batch_size=2)
  options = dict(max_new_tokens=12, batch_size=2, output=output)
  with pytest.raises(Interrupted):
    generation_metrics.run(Counting(lm, fail_at=2), path, **options)
  kept = tmp_path / "report.json.answers.jsonl"
  assert kept.read_bytes().count(b"\n") == 2
  with kept.open("ab") as file:
    file.write(b'{"key": "cut off in the mi')  # the machine stopped while it was written
  again = Counting(lm)
  assert generation_metrics.run(again, path, **options) == whole
  assert again.prompts == 2  # of four different prompts
  done = Counting(lm)
  assert generation_metrics.run(done, path, **options) == whole
  assert done.calls == 0
  # Other options and other weights make other answers.
  longer = Counting(lm)
  generation_metrics.run(longer, path, **{**options, "max_new_tokens": 13})
  assert longer.prompts == 4
  changed = Counting(make(lm.tokenizer, seed=5))
  assert (
    generation_metrics.run(changed, path, **options)["settings"]["weights"]
    != whole["settings"]["weights"]
  )
  assert changed.prompts == 4


def test_damaged_answers_are_named(lm, tmp_path):
  path, output = write(tmp_path / "questions.jsonl", QUESTIONS), str(tmp_path / "report.json")
  (tmp_path / "report.json.answers.jsonl").write_text('{"key": "a", "value": "b"}\n{"key"}\n')
  with pytest.raises(UserError, match=r"report\.json\.answers\.jsonl:2: .*remove the file"):
    generation_metrics.run(lm, path, output=output)


class FakeJudge:
  """Grades answers by their length; fails once at an answer, if told to."""

  at_once = 1

  def __init__(self, fail_at=None):
    self.description = {"kind": "fake"}
    self.fail_at, self.graded = fail_at, []

  def grade(self, prompt, reference, answer):
    if len(self.graded) == self.fail_at:
      raise UserError("the judge is away")
    self.graded.append((prompt, reference, answer))
    return llm_judge.Judgement(len(answer) if len(answer) <= 10 else None, f"as long as {answer}")


def test_judged(tmp_path, monkeypatch):
  """Predictions that stand in the file, judged by one that fails on the way."""
  records = [
    {"prompt": "p", "reference": ["a", "b"], "prediction": "abc", "category": "x"},
    {"prompt": "p", "reference": "a", "prediction": "abcdefghijk", "category": "y"},
    {"prompt": "p", "reference": "a", "prediction": "abcdefgh", "category": "x"},
  ]
  path = write(tmp_path / "q.jsonl", records)
  spec = []

  def run(fake):
    monkeypatch.setattr(llm_judge, "make_judge", lambda s: spec.append(s) or fake)
    return generation_metrics.run(None, path, judge="http://judge/v1", output=str(tmp_path / "r"))

  failing = FakeJudge(fail_at=2)
  with pytest.raises(UserError, match="the judge is away"):
    run(failing)
  going_on = FakeJudge()
  report = run(going_on)
  assert failing.graded == [("p", "a (or) b", "abc"), ("p", "a", "abcdefghijk")]
  assert going_on.graded == [("p", "a", "abcdefgh")]
  assert spec == ["http://judge/v1"] * 2
  assert [s["judge_score"] for s in report["samples"]] == [3, None, 8]
  assert report["samples"][2]["judge_explanation"] == "as long as abcdefgh"
  metrics = report["metrics"]
  assert (metrics["judge_score"], metrics["judge_scored"], metrics["judge_unparsed"]) == (5.5, 2, 1)
  assert "judge_score" not in report["per_category"]["y"]  # nothing to take the mean of
  assert report["per_category"]["y"]["judge_unparsed"] == 1
  assert report["judge"] == {"kind": "fake"}
  assert report["settings"]["weights"] is None


GOOD = {"prompt": "p", "reference": "r", "prediction": "x"}


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", "not JSON"),
    ('["p"]', "not an object"),
    (json.dumps({**GOOD, "prompt": ""}), '"prompt" is missing'),
    (json.dumps({**GOOD, "reference": []}), '"reference" is missing'),
    (json.dumps({**GOOD, "reference": ["a", 1]}), '"reference" is missing, or neither'),
    (json.dumps({**GOOD, "category": 1}), '"category" is not a text'),
    (json.dumps({**GOOD, "prediction": ["x"]}), '"prediction" is not a text'),
    (json.dumps({**GOOD, "stop": [""]}), '"stop" is neither'),
    (json.dumps({**GOOD, "stop": None}), '"stop" is neither'),
    (json.dumps({**GOOD, "reference": "\ud800"}), "not valid text"),
    (json.dumps({"prompt": "p", "reference": "r"}), 'no "prediction", and no model'),
  ],
)
def test_bad_records(tmp_path, line, message):
  path = tmp_path / "q.jsonl"
  path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
  with pytest.raises(UserError, match=rf"q\.jsonl:3: .*{message}"):
    generation_metrics.run(None, str(path))


def test_mistakes(lm, tmp_path):
  path = write(tmp_path / "q.jsonl", [GOOD, {"prompt": "the dog " * 20, "reference": "r"}])
  tokens = len(lm.tokenizer("the dog " * 20).input_ids)
  over = tokens + 30 - 64
  with pytest.raises(UserError, match=rf"q\.jsonl:2: .* {over} more than the model's 64 positions"):
    generation_metrics.run(lm, path, max_new_tokens=30)
  with pytest.raises(UserError, match="cannot be read"):
    generation_metrics.run(lm, str(tmp_path / "absent.jsonl"))
  with pytest.raises(UserError, match="no record"):
    generation_metrics.run(lm, write(tmp_path / "empty.jsonl", []))
  for name in ("max_new_tokens", "batch_size", "limit"):
    with pytest.raises(UserError, match=f"{name} is 0"):
      generation_metrics.run(lm, path, **{name: 0})
  with pytest.raises(UserError, match="cannot be written"):
    generation_metrics.run(
      None, write(tmp_path / "p.jsonl", [GOOD]), output=str(tmp_path / "no" / "r.json")
    )
