"""Answers to a file of questions: generated, scored, judged, and resumed after an interruption."""

import json

import pytest

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError
from gptneo_jax.evals import generation_metrics, llm_judge, qa_eval
from tests.helpers.small_models import random_lm

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20
TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=2,
  window_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def lm():
  documents = [Document(TEXT, "", "here")]
  tokenizer = data.load_tokenizer("train", documents=documents, vocab_size=280)
  return random_lm(TINY, tokenizer, seed=4)


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


def test_run(lm, tmp_path):
  path = write(tmp_path / "questions.jsonl", QUESTIONS)
  report = qa_eval.evaluate(lm, path, max_new_tokens=12, batch_size=2)
  prompts = [q["prompt"] for q in QUESTIONS]
  pairs = [lm.generate(two, max_new_tokens=12) for two in (prompts[:2], prompts[2:4], prompts[3:])]
  expected = [text for pair in pairs for text in pair.texts]
  assert expected.pop(3) == expected[3]  # it is in two pairs
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
    qa_eval.evaluate(lm, path, max_new_tokens=12, batch_size=2, limit=2)["samples"]
    == report["samples"][:2]
  )


def test_stop(lm, tmp_path):
  """An answer ends before its first stop string."""
  whole = lm.generate(["the quick", "fox"], max_new_tokens=12).texts[0]
  stop = whole[len(whole) // 2 :][:2]
  record = {"prompt": "the quick", "reference": "x", "stop": ["never there", stop]}
  path = write(tmp_path / "q.jsonl", [record])
  (cut,) = qa_eval.evaluate(lm, path, max_new_tokens=12)["samples"]
  assert 0 < len(cut["prediction"]) < len(whole)
  assert cut["prediction"] == whole[: whole.index(stop)]


class Interrupted(Exception):
  pass


class Counting:
  """A model that counts calls and prompts, and is interrupted before call `fail_at`."""

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


def test_interrupted_run_resumes(lm, tmp_path):
  path, output = write(tmp_path / "questions.jsonl", QUESTIONS), str(tmp_path / "report.json")
  whole = qa_eval.evaluate(lm, path, max_new_tokens=12, batch_size=2)
  options = dict(max_new_tokens=12, batch_size=2, output=output)
  with pytest.raises(Interrupted):
    qa_eval.evaluate(Counting(lm, fail_at=2), path, **options)
  kept = tmp_path / "report.json.answers.jsonl"
  assert kept.read_bytes().count(b"\n") == 2
  with kept.open("ab") as file:
    file.write(b'{"key": "cut off in the mi')  # as if the machine had stopped while writing
  again = Counting(lm)
  assert qa_eval.evaluate(again, path, **options) == whole
  assert again.prompts == 2  # of four different prompts
  done = Counting(lm)
  assert qa_eval.evaluate(done, path, **options) == whole
  assert done.calls == 0
  # Answers of other options or other weights are not reused.
  longer = Counting(lm)
  qa_eval.evaluate(longer, path, **{**options, "max_new_tokens": 13})
  assert longer.prompts == 4
  changed = Counting(random_lm(TINY, lm.tokenizer, seed=5))
  assert (
    qa_eval.evaluate(changed, path, **options)["settings"]["weights"]
    != whole["settings"]["weights"]
  )
  assert changed.prompts == 4


def test_damaged_answers_are_named(lm, tmp_path):
  path, output = write(tmp_path / "questions.jsonl", QUESTIONS), str(tmp_path / "report.json")
  (tmp_path / "report.json.answers.jsonl").write_text('{"key": "a", "value": "b"}\n{"key"}\n')
  with pytest.raises(UserError, match=r"report\.json\.answers\.jsonl:2: .*remove the file"):
    qa_eval.evaluate(lm, path, output=output)


class FakeJudge:
  """Grades answers by their length; fails at answer `fail_at`."""

  max_concurrency = 1

  def __init__(self, fail_at=None):
    self.description = {"kind": "fake"}
    self.fail_at, self.graded = fail_at, []

  def grade(self, prompt, reference, answer):
    if len(self.graded) == self.fail_at:
      raise UserError("the judge is away")
    self.graded.append((prompt, reference, answer))
    return llm_judge.Judgement(len(answer) if len(answer) <= 10 else None, f"as long as {answer}")


def test_judged(tmp_path, monkeypatch):
  """Predictions given in the file, graded by a judge that fails and is resumed."""
  records = [
    {"prompt": "p", "reference": ["a", "b"], "prediction": "abc", "category": "x"},
    {"prompt": "p", "reference": "a", "prediction": "abcdefghijk", "category": "y"},
    {"prompt": "p", "reference": "a", "prediction": "abcdefgh", "category": "x"},
  ]
  path = write(tmp_path / "q.jsonl", records)
  spec = []

  def run(fake):
    monkeypatch.setattr(llm_judge, "make_judge", lambda s: spec.append(s) or fake)
    return qa_eval.evaluate(None, path, judge="http://judge/v1", output=str(tmp_path / "r"))

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
  assert "judge_score" not in report["per_category"]["y"]  # no score to average
  assert report["per_category"]["y"]["judge_unparsed"] == 1
  assert report["judge"] == {"kind": "fake"}
  assert report["settings"]["weights"] is None


GOOD = {"prompt": "p", "reference": "r", "prediction": "x"}


def test_no_prediction_and_no_model(tmp_path):
  path = write(tmp_path / "q.jsonl", [GOOD, {"prompt": "p", "reference": "r"}])
  with pytest.raises(UserError, match=r'q\.jsonl:2: there is no "prediction", and no model'):
    qa_eval.evaluate(None, path)


def test_mistakes(lm, tmp_path):
  path = write(tmp_path / "q.jsonl", [GOOD, {"prompt": "the dog " * 20, "reference": "r"}])
  tokens = len(lm.tokenizer("the dog " * 20).input_ids)
  over = tokens + 30 - 64
  with pytest.raises(UserError, match=rf"q\.jsonl:2: .* {over} more than the model's 64 positions"):
    qa_eval.evaluate(lm, path, max_new_tokens=30)
  with pytest.raises(UserError, match="cannot be read"):
    qa_eval.evaluate(lm, str(tmp_path / "absent.jsonl"))
  with pytest.raises(UserError, match="no record"):
    qa_eval.evaluate(lm, write(tmp_path / "empty.jsonl", []))
  for name in ("max_new_tokens", "batch_size", "limit"):
    with pytest.raises(UserError, match=f"{name} is 0"):
      qa_eval.evaluate(lm, path, **{name: 0})
  with pytest.raises(UserError, match="cannot be written"):
    qa_eval.evaluate(
      None, write(tmp_path / "p.jsonl", [GOOD]), output=str(tmp_path / "no" / "r.json")
    )
