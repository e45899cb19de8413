"""Tasks of lm-evaluation-harness: scores, windows, generation, sets, caches, mistakes."""

import collections
import json
import math
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptneo_jax
from gptneo_jax import data, engine, model_io
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError
from gptneo_jax.evals import harness, local_tasks, provenance, scoring, task_sets

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

from gptneo_jax.evals.adapter import HarnessModel

TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=48, hidden_size=16, num_layers=2, num_heads=2,
  window_size=6,
)  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer():
  return data.load_tokenizer("train", documents=[Document(TEXT, "", "here")], vocab_size=280)


def make(tokenizer, scale=0.3, seed=3):
  """A model at random, or a uniform one at scale 0, made without compiling `init`."""
  mesh, rng = model_io.first_device(), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jax.device_put((scale * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(TINY, mesh),
  )
  lm = engine.LanguageModel(model_io.Weights(TINY, params), mesh)
  lm.tokenizer = tokenizer
  return lm


@pytest.fixture(scope="module")
def lm(tokenizer):
  return make(tokenizer)


@pytest.fixture(scope="module")
def model(lm):
  return HarnessModel(lm, batch_size=4)


def requests(*args):
  return [SimpleNamespace(args=pair) for pair in args]


def log_probabilities(lm, ids):
  """Of each next token, float64 T x V, by the engine's logits."""
  logits_TxV = np.asarray(lm.logits([ids]), np.float64)[0]
  shifted = logits_TxV - logits_TxV.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected(lm, context, targets):
  """What is to come out for ids: the last positions of all that fit."""
  ids = [*context, *targets][-(TINY.max_position_embeddings + 1) :]
  logprobs_KxV = log_probabilities(lm, ids[:-1])[-len(targets) :]
  greedy = bool((logprobs_KxV.argmax(-1) == targets).all())
  return logprobs_KxV[np.arange(len(targets)), targets].sum(), greedy


# --- log-likelihoods ------------------------------------------------------------------------------


def test_rows_of_all_lengths_in_their_order(lm, model):
  """Each as if it were alone, whatever is beside it; contexts too long lose their beginning."""
  rng = np.random.default_rng(0)
  pairs = [
    (" ".join(rng.choice(WORDS, n)), " " + " ".join(rng.choice(WORDS, k)))
    for n, k in zip(rng.integers(1, 90, 25), rng.integers(1, 6, 25))
  ]
  found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
  assert max(len(lm.tokenizer(context).input_ids) for context, _ in pairs) > 60
  for (context, continuation), (score, greedy) in zip(pairs, found):
    ids, context_ids = (lm.tokenizer(t).input_ids for t in (context + continuation, context))
    value, is_greedy = expected(lm, context_ids, ids[len(context_ids) :])
    assert score == pytest.approx(value, abs=2e-4)
    assert greedy == is_greedy
  again = HarnessModel(lm, 1).loglikelihood(requests(*pairs), disable_tqdm=True)
  assert [greedy for _, greedy in again] == [greedy for _, greedy in found]
  np.testing.assert_allclose([s for s, _ in again], [s for s, _ in found], rtol=0, atol=2e-5)


def test_greedy_continuations_are_known(lm, model):
  """What the model itself says next is greedy, and with another last token it is not."""
  ids = lm.tokenizer("the quick").input_ids
  made = lm.generate([ids], max_new_tokens=4, eos_token_id=-1).sequences[0, len(ids) :].tolist()
  wrong = [*made[:-1], (made[-1] + 1) % 280]
  found = model._loglikelihood_tokens([(None, ids, made), (None, ids, wrong)], disable_tqdm=True)
  assert [greedy for _, greedy in found] == [True, False]


def test_of_equal_logits_the_first_is_greedy(tokenizer):
  """As argmax has it."""
  uniform = HarnessModel(make(tokenizer, scale=0), batch_size=4)
  rows = [(None, [5], [0]), (None, [5], [1]), (None, [5, 0], [0, 0])]
  found = uniform._loglikelihood_tokens(rows, disable_tqdm=True)
  assert [greedy for _, greedy in found] == [True, False, True]
  np.testing.assert_allclose([score for score, _ in found], -math.log(280) * np.array([1, 1, 2]))


def test_empty_and_blank_texts(lm, model):
  """An empty context is the end of text; a continuation that begins with it is not scored by it."""
  end, ids = model.eot_token_id, lm.tokenizer("the dog").input_ids
  spelled = lm.tokenizer.decode([end])
  pairs = [
    ("", "the dog"),
    ("", spelled + "the dog"),
    ("", ""),
    ("", spelled),
    ("the dog", ""),
    ("   ", "dog"),
    ("the dog  ", "x"),
  ]
  found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
  value, _ = expected(lm, [end], ids)
  assert found[0][0] == found[1][0] == pytest.approx(value, abs=1e-4)
  assert found[2] == found[3] == found[4] == (0.0, True)
  blank = lm.tokenizer("   dog").input_ids
  assert found[5][0] == pytest.approx(expected(lm, [end], blank)[0], abs=1e-4)
  whole = lm.tokenizer("the dog  x").input_ids  # the spaces belong to what is scored
  assert whole[: len(ids)] == ids
  assert found[6][0] == pytest.approx(expected(lm, ids, whole[len(ids) :])[0], abs=1e-4)


def test_token_that_spans_the_join(lm, model):
  """'qui' + 'ck' is one token, which leaves nothing of 'ck': the two are encoded on their own."""
  tokenizer = lm.tokenizer
  context, continuation = "the qui", "ck"
  context_ids, whole = tokenizer(context).input_ids, tokenizer(context + continuation).input_ids
  assert len(whole) <= len(context_ids), "the tokenizer has no such token"
  own = tokenizer(continuation).input_ids
  ((score, _),) = model.loglikelihood(requests((context, continuation)), disable_tqdm=True)
  assert score == pytest.approx(expected(lm, context_ids, own)[0], abs=1e-4)


def test_continuation_longer_than_the_model(model):
  with pytest.raises(UserError, match="49 tokens at once, and the model has 48 positions"):
    model._loglikelihood_tokens([(None, [1], [2] * 49)], disable_tqdm=True)


def test_equal_inputs_are_computed_once(lm):
  """Answers of one token to one question are read off one text, as many as it has tokens."""
  scorer = scoring.Scorer(lm, 4)
  asked = [scoring.Asked((7, 8, 9), (i,)) for i in range(200)] + [scoring.Asked((7,), (1,))] * 3
  (first, *_) = scorer.batches(asked)
  assert [len(text) for row in first.rows for text in row] == [2] + [3] * 63
  found = dict(scorer.answers(asked))
  logprobs_V = log_probabilities(lm, [7, 8, 9])[-1]
  np.testing.assert_allclose(
    [found[i].logprob_K[0] for i in range(200)], logprobs_V[:200], atol=1e-5
  )


def test_packed_texts_do_not_see_one_another(lm):
  rng = np.random.default_rng(0)
  asked = [
    scoring.Asked(tuple(rng.integers(0, 280, n)), tuple(rng.integers(0, 280, -(-n // 2))))
    for n in rng.integers(1, 49, 60)
  ]
  found = dict(scoring.Scorer(lm, 4).answers(asked))
  for i, (inputs, targets) in enumerate(asked):
    logprobs_KxV = log_probabilities(lm, list(inputs))[-len(targets) :]
    expected_K = logprobs_KxV[np.arange(len(targets)), targets]
    np.testing.assert_allclose(found[i].logprob_K, expected_K, atol=1e-5)
    np.testing.assert_array_equal(found[i].greedy_K, logprobs_KxV.argmax(-1) == targets)


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 9))
def test_rows_hold_every_text_once_and_are_full(lm, lengths, batch_size):
  scorer = scoring.Scorer(lm, batch_size)
  scorer._widths = scoring.widths(700)
  asked = [scoring.Asked((i,) * length, (1,)) for i, length in enumerate(lengths)]
  batches = list(scorer.batches(asked))
  held = [i for batch in batches for row in batch.rows for text in row for i in text]
  assert sorted(held) == list(range(len(lengths)))
  for batch in batches:
    filled = [sum(lengths[text[0]] for text in row) for row in batch.rows]
    assert len(batch.rows) <= batch_size and max(filled) <= batch.width
    # A text that came later did not fit into any row before it.
    for b in range(len(filled)):
      assert all(
        filled[b] + lengths[text[0]] > batch.width for r in batch.rows[b + 1 :] for text in r
      )


def test_few_programs(lm):
  """1,000 requests of all lengths: one program, one of fewer rows for the last; none twice."""
  rng, scorer, compiled = np.random.default_rng(0), scoring.Scorer(lm, 4), []
  asked = [scoring.Asked(tuple(rng.integers(0, 280, n)), (3,)) for n in rng.integers(1, 49, 1000)]
  for _ in range(2):
    compiled.append(scoring._score._cache_size())
    assert len(dict(scorer.answers(asked))) == 1000
  compiled.append(scoring._score._cache_size())
  assert compiled[1] - compiled[0] <= 2 and compiled[2] == compiled[1]


def test_widths():
  assert scoring.widths(48) == [48]
  assert scoring.widths(256) == [256]
  assert scoring.widths(700) == [256, 384, 512, 700]
  assert scoring.widths(2048) == [256, 384, 512, 768, 1024, 1536, 2048]


# --- texts ----------------------------------------------------------------------------------------


def test_rolling_windows(lm, model, monkeypatch):
  """Ten tokens in windows of four: the last has all the context that fits, none scores twice."""
  seen = []

  def answers(asked):
    seen.extend(asked)
    return (
      (i, scoring.Answer(np.full(len(a.targets), -1.0), np.array([True])))
      for i, a in enumerate(asked)
    )

  monkeypatch.setattr(model._scorer, "answers", answers)
  monkeypatch.setattr(HarnessModel, "max_length", 4)
  monkeypatch.setattr(HarnessModel, "prefix_token_id", 99)
  monkeypatch.setattr(HarnessModel, "tok_encode", lambda self, text: list(range(len(text))))
  totals = model.loglikelihood_rolling(requests(("x" * 10,), ("",), ("xy",)), disable_tqdm=True)
  assert [(list(a.inputs), list(a.targets)) for a in seen] == [
    ([99, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9]),
    ([99, 0], [0, 1]),
  ]  # fmt: skip
  assert totals == [-10.0, 0.0, -2.0]


def test_rolling_sum_is_one_forward_pass(lm, model):
  """A text that fits, and is longer than the local window."""
  ids = lm.tokenizer(TEXT).input_ids[:40]
  (total,) = model.loglikelihood_rolling(requests((lm.tokenizer.decode(ids),)), disable_tqdm=True)
  assert lm.tokenizer(lm.tokenizer.decode(ids)).input_ids == ids
  assert total == pytest.approx(expected(lm, [model.eot_token_id], ids)[0], abs=2e-4)


def test_uniform_model(tokenizer, tmp_path):
  """Each token costs log 280: token perplexity 280; bits per byte follow from the bytes."""
  texts = ["the quick brown fox " * 30, "Zürich 数字"]
  (tmp_path / "pile_test.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  report = harness.evaluate_tasks(
    make(tokenizer, scale=0),
    ["pile_local"],
    task_data=str(tmp_path),
    batch_size=4,
    log_samples=True,
  )
  found = report["results"]["pile_local"]
  tokens = sum(len(tokenizer(text).input_ids) for text in texts)
  size = sum(len(text.encode()) for text in texts)
  assert found["token_perplexity"] == pytest.approx(280, rel=1e-5)
  assert found["bits_per_byte"] == pytest.approx(math.log2(280) * tokens / size, rel=1e-5)
  assert [item["doc"]["text"] for item in report["samples"]["pile_local"]] == texts


# --- generation -----------------------------------------------------------------------------------


def test_generation_stops_and_cuts(lm, model):
  """Up to the first stop string, each row with its own length; the context is none of the text."""
  texts = ["the quick brown", "the dog does not mind it at all. the", "dog", "fox " * 60]
  plain = model.generate_until(
    requests(*((text, {"max_gen_toks": 12, "until": []}) for text in texts)), disable_tqdm=True
  )
  for text, made in zip(texts, plain):
    ids = lm.tokenizer(text).input_ids[-(48 - 12) :]
    assert made == lm.generate([ids], max_new_tokens=12).texts[0]
  stop = plain[0][4:6]
  stopped = model.generate_until(
    requests(*((text, {"max_new_tokens": 12, "until": stop}) for text in texts)), disable_tqdm=True
  )
  assert stopped == [text.split(stop)[0] for text in plain]


def test_stop_string_that_began_in_the_context(lm, model, monkeypatch):
  """It ends the row, but the new text does not hold it: the row goes on."""
  ids = lm.tokenizer("the dog").input_ids
  made = lm.generate([ids], max_new_tokens=8).texts[0]
  stop = "g" + made[:1]
  assert stop not in made
  options = {"max_gen_toks": 8, "until": [stop]}
  assert model.generate_until(requests(("the dog", options)), disable_tqdm=True) == [made]


@pytest.mark.parametrize(
  ("settings", "sampled"),
  [
    ({}, False),
    ({"temperature": 0.0, "top_p": 0.5}, False),
    ({"temperature": 0.7}, True),
    ({"do_sample": False, "temperature": 0.7, "top_k": 3}, False),
    ({"do_sample": True}, True),
    ({"do_sample": True, "temperature": 0.0}, False),
  ],
)
def test_when_it_samples(model, settings, sampled):
  until, new_tokens, options = model._options({**settings, "until": "\n", "max_tokens": 5})
  assert (until, new_tokens) == (["\n"], 5)
  assert options.get("do_sample", False) is sampled
  assert sampled or options == {"do_sample": False}  # whatever the model brings as its default


def test_sampling_is_seeded_and_repeats_differ(lm, model):
  """The same request again is drawn anew; which batch a request is in changes nothing."""
  options = {"max_gen_toks": 8, "temperature": 1.0, "until": []}
  asked = requests(*[("the dog", options)] * 3, ("fox", options))
  made = model.generate_until(asked, disable_tqdm=True)
  assert len(set(made[:3])) == 3
  assert HarnessModel(lm, 1).generate_until(asked, disable_tqdm=True) == made
  assert HarnessModel(lm, 4, seed=9).generate_until(asked, disable_tqdm=True) != made


def test_more_new_tokens_than_positions(model):
  with pytest.raises(UserError, match="256 new tokens, and the model has 48 positions"):
    model.generate_until(requests(("the dog", {"until": "x"})), disable_tqdm=True)


# --- tasks by name --------------------------------------------------------------------------------

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def own_tasks(tmp_path):
  """Two YAML tasks of a user, one of which has no data."""
  rows = [{"question": f"the {w}", "choices": ["dog", "fox", "at"], "answer": 1} for w in WORDS[:9]]
  (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, file in (("own", "own.jsonl"), ("lost", "lost.jsonl")):
    (tmp_path / f"{name}.yaml").write_text(YAML.format(name=name, file=tmp_path / file))
  return str(tmp_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
  """No test waits for the hub."""
  monkeypatch.setattr(harness, "_reachable", lambda address: False)


def test_own_tasks_and_missing_data(lm, own_tasks):
  """One task's missing file stops no other; few-shot examples and limits are kept to."""
  report = harness.evaluate_tasks(
    lm,
    ["lost", "own"],
    include_path=own_tasks,
    num_fewshot=2,
    limit=5,
    batch_size=4,
    log_samples=True,
  )
  assert "lost.jsonl" in report["missing"]["lost"]
  found = report["samples"]["own"]
  assert len(found) == 5 and report["num_fewshot"] == {"own": 2}
  assert all(item["arguments"][0][0].count("\n\n") == 2 for item in found)
  right = [item["acc"] for item in found]
  assert report["results"]["own"]["acc"] == np.mean(right)
  assert report["results"]["own"]["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / 5**0.5)
  assert report["columns"] == []


def test_cache_belongs_to_the_model(lm, tokenizer, own_tasks, tmp_path, monkeypatch):
  """A second run computes nothing; another model's does, in a file of its own."""
  run = lambda lm: harness.evaluate_tasks(  # noqa: E731
    lm, ["own"], include_path=own_tasks, batch_size=4, cache=str(tmp_path / "answers.sqlite")
  )
  first = run(lm)
  computed = collections.Counter()
  answers = scoring.Scorer.answers
  count = lambda self, asked: (computed.update(n=len(asked)), answers(self, asked))[1]  # noqa: E731
  monkeypatch.setattr(scoring.Scorer, "answers", count)
  assert run(lm)["results"] == first["results"] and not computed
  assert run(make(tokenizer, seed=4))["results"] and computed["n"] == 27
  assert len(list(tmp_path.glob("answers-*.sqlite"))) == 2


def test_fingerprint(lm, tokenizer):
  """Equal for equal models; a single changed weight, or two that changed places, show."""
  assert provenance.of_model(make(tokenizer)) == provenance.of_model(lm)
  changed = make(tokenizer)
  wte = np.asarray(changed.params["wte"]).copy()
  wte[[3, 4]] = wte[[4, 3]]
  changed.params = {**changed.params, "wte": jax.numpy.asarray(wte)}
  assert provenance.of_model(changed) != provenance.of_model(lm)


def test_paper_columns(lm, tmp_path):
  """Columns in the published order, filled from local data, and the rest named as missing."""
  rows = [{"text": "the quick brown fox jumps over the lazy dog"}] * 3
  (tmp_path / "lambada_test_3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "wikitext2_test.txt").write_text(TEXT)
  report = harness.evaluate_tasks(
    lm, ["gptneo_paper"], task_data=str(tmp_path), batch_size=4, limit=2
  )
  assert [row["column"] for row in report["columns"]] == [
    "Pile BPB", "Pile PPL", "Wikitext PPL", "LAMBADA PPL", "LAMBADA acc", "Winogrande", "HellaSwag",
    "MathQA", "PubMedQA", "PIQA",
  ]  # fmt: skip
  values = {row["column"]: row["value"] for row in report["columns"]}
  results = report["results"]
  assert values["LAMBADA PPL"] == results["lambada_local"]["perplexity"] > 1
  assert values["LAMBADA acc"] == results["lambada_local"]["acc"]
  assert values["Wikitext PPL"] == results["wikitext_local"]["token_perplexity"]
  assert values["Winogrande"] is None and values["Pile BPB"] is None
  assert report["missing"]["pile_local"].startswith("needs pile_test.jsonl")
  assert set(report["missing"]) == {
    "pile_local", "winogrande", "hellaswag", "mathqa", "pubmedqa", "piqa",
  }  # fmt: skip


def test_every_local_task_and_set_is_whole():
  """Each task of a set exists, and each column's metric is one of its task's."""
  known = local_tasks.names()
  assert set(task_sets.quick_limits()) <= set(known)
  for column in task_sets.paper_columns():
    if column.local:
      metrics = task_sets.read(f"local/{column.local.task}")["metric_list"]
      assert column.local.metric in [metric["metric"] for metric in metrics]


def test_quick_needs_nothing(lm):
  report = harness.evaluate_tasks(lm, ["quick"], batch_size=4, limit=2)
  assert set(report["results"]) == {"stdlib_text", "stdlib_cloze"}
  assert set(report["missing"]) == {"lambada_local", "hellaswag_local", "piqa_local"}
  assert report["results"]["stdlib_text"]["bits_per_byte"] > 0


@pytest.mark.parametrize(
  ("tasks", "options", "message"),
  [
    (["lambada_loca"], {}, "no task 'lambada_loca'; did you mean lambada_local"),
    (["gptneo_papers"], {}, "did you mean gptneo_paper"),
    ([], {}, "no task is named"),
    (["quick"], {"limit": 0}, "limit is 0; it must be at least 1"),
    (["quick"], {"include_path": "nowhere"}, "'nowhere': no such folder"),
  ],
)
def test_mistakes(lm, monkeypatch, tasks, options, message):
  from lm_eval import tasks as harness_tasks

  # To look through all of the harness' tasks takes 15 seconds.
  small = lambda include_path, **_: real(include_path=include_path, include_defaults=False)  # noqa: E731
  real = harness_tasks.TaskManager
  monkeypatch.setattr(harness_tasks, "TaskManager", small)
  with pytest.raises(UserError, match=message):
    harness.evaluate_tasks(lm, tasks, **options)


def test_model_that_cannot(lm):
  with pytest.raises(UserError, match="has no tokenizer"):
    harness.evaluate_tasks(
      engine.LanguageModel(lm._loaded._replace(params=lm.params), lm.mesh), ["quick"]
    )


@pytest.mark.processes
def test_on_a_mesh_and_without_torch(lm, own_tasks, tmp_path):
  """Four devices give one device's numbers; PyTorch is never imported."""
  lm.save(str(tmp_path / "saved"))
  expected = harness.evaluate_tasks(
    lm, ["own"], include_path=own_tasks, batch_size=4, log_samples=True
  )
  program = f"""
    import json, sys
    import gptneo_jax
    from gptneo_jax.evals import harness
    from gptneo_jax.sharding import make_mesh
    lm = gptneo_jax.load({str(tmp_path / "saved")!r}, mesh=make_mesh(data=1, fsdp=2, tensor=2))
    report = harness.evaluate_tasks(
      lm, ["own"], include_path={own_tasks!r}, batch_size=3, log_samples=True
    )
    assert "torch" not in sys.modules
    print(json.dumps([item["resps"] for item in report["samples"]["own"]]))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300,
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "USE_TORCH": "0"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  for rows, item in zip(found, expected["samples"]["own"], strict=True):
    for row, right in zip(rows, item["resps"], strict=True):
      assert row[0][0] == pytest.approx(right[0][0], abs=2e-4)
