"""A model as lm-evaluation-harness calls it: log-likelihoods, windows, generation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gptneo_jax.errors import Stopped, UserError
from gptneo_jax.evals import scoring
from tests.helpers.tiny_lm import TEXT, WORDS, expected_score, tiny_lm

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

from gptneo_jax.evals.lm_eval_model import LmEvalModel


@pytest.fixture(scope="module")
def lm():
  return tiny_lm()


@pytest.fixture(scope="module")
def model(lm):
  return LmEvalModel(lm, batch_size=4)


def requests(*args):
  return [SimpleNamespace(args=pair) for pair in args]


# --- log-likelihoods ------------------------------------------------------------------------------


def test_rows_of_all_lengths_in_their_order(lm, model):
  """Each as if it were alone; contexts that are too long are truncated on the left."""
  rng = np.random.default_rng(0)
  pairs = [
    (" ".join(rng.choice(WORDS, n)), " " + " ".join(rng.choice(WORDS, k)))
    for n, k in zip(rng.integers(1, 90, 25), rng.integers(1, 6, 25))
  ]
  found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
  assert max(len(lm.tokenizer(context).input_ids) for context, _ in pairs) > 60
  for (context, continuation), (score, greedy) in zip(pairs, found):
    ids, context_ids = (lm.tokenizer(t).input_ids for t in (context + continuation, context))
    value, is_greedy = expected_score(lm, context_ids, ids[len(context_ids) :])
    assert score == pytest.approx(value, abs=2e-4)
    assert greedy == is_greedy
  again = LmEvalModel(lm, 1).loglikelihood(requests(*pairs), disable_tqdm=True)
  assert [greedy for _, greedy in again] == [greedy for _, greedy in found]
  np.testing.assert_allclose([s for s, _ in again], [s for s, _ in found], rtol=0, atol=2e-5)


def test_greedy_continuations_are_known(lm, model):
  """The model's own continuation is greedy, and with another last token it is not."""
  ids = lm.tokenizer("the quick").input_ids
  made = lm.generate([ids], max_new_tokens=4, eos_token_id=-1).sequences[0, len(ids) :].tolist()
  wrong = [*made[:-1], (made[-1] + 1) % 280]
  found = model._loglikelihood_tokens([(None, ids, made), (None, ids, wrong)], disable_tqdm=True)
  assert [greedy for _, greedy in found] == [True, False]


def test_of_equal_logits_the_first_is_greedy():
  """As for argmax."""
  uniform = LmEvalModel(tiny_lm(scale=0), batch_size=4)
  rows = [(None, [5], [0]), (None, [5], [1]), (None, [5, 0], [0, 0])]
  found = uniform._loglikelihood_tokens(rows, disable_tqdm=True)
  assert [greedy for _, greedy in found] == [True, False, True]
  np.testing.assert_allclose([score for score, _ in found], -math.log(280) * np.array([1, 1, 2]))


def test_empty_and_blank_texts(lm, model):
  """An empty context becomes the end of text, which is not scored again if the text spells it."""
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
  value, _ = expected_score(lm, [end], ids)
  assert found[0][0] == found[1][0] == pytest.approx(value, abs=1e-4)
  assert found[2] == found[3] == found[4] == (0.0, True)
  blank = lm.tokenizer("   dog").input_ids
  assert found[5][0] == pytest.approx(expected_score(lm, [end], blank)[0], abs=1e-4)
  whole = lm.tokenizer("the dog  x").input_ids  # the spaces belong to the continuation
  assert whole[: len(ids)] == ids
  assert found[6][0] == pytest.approx(expected_score(lm, ids, whole[len(ids) :])[0], abs=1e-4)


def test_token_that_spans_the_join(lm, model):
  """'qui' + 'ck' is one token, which leaves nothing of 'ck': the two are encoded separately."""
  tokenizer = lm.tokenizer
  context, continuation = "the qui", "ck"
  context_ids, whole = tokenizer(context).input_ids, tokenizer(context + continuation).input_ids
  assert len(whole) <= len(context_ids), "the tokenizer has no such token"
  own = tokenizer(continuation).input_ids
  ((score, _),) = model.loglikelihood(requests((context, continuation)), disable_tqdm=True)
  assert score == pytest.approx(expected_score(lm, context_ids, own)[0], abs=1e-4)


def test_continuation_longer_than_the_model(model):
  with pytest.raises(UserError, match="49 tokens at once, and the model has 48 positions"):
    model._loglikelihood_tokens([(None, [1], [2] * 49)], disable_tqdm=True)


def test_rolling_windows(lm, model, monkeypatch):
  """Ten tokens in windows of four: the last has as much context as fits; no token counts twice."""
  seen = []

  def answers(asked):
    seen.extend(asked)
    return (
      (i, scoring.TargetScores(np.full(len(a.targets), -1.0), np.array([True])))
      for i, a in enumerate(asked)
    )

  monkeypatch.setattr(model._scorer, "score", answers)
  monkeypatch.setattr(LmEvalModel, "max_length", 4)
  monkeypatch.setattr(LmEvalModel, "prefix_token_id", 99)
  monkeypatch.setattr(LmEvalModel, "tok_encode", lambda self, text: list(range(len(text))))
  totals = model.loglikelihood_rolling(requests(("x" * 10,), ("",), ("xy",)), disable_tqdm=True)
  assert [(list(a.inputs), list(a.targets)) for a in seen] == [
    ([99, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9]),
    ([99, 0], [0, 1]),
  ]  # fmt: skip
  assert totals == [-10.0, 0.0, -2.0]


def test_rolling_sum_is_one_forward_pass(lm, model):
  """For a text that fits the model and is longer than the local window."""
  ids = lm.tokenizer(TEXT).input_ids[:40]
  (total,) = model.loglikelihood_rolling(requests((lm.tokenizer.decode(ids),)), disable_tqdm=True)
  assert lm.tokenizer(lm.tokenizer.decode(ids)).input_ids == ids
  assert total == pytest.approx(expected_score(lm, [model.eot_token_id], ids)[0], abs=2e-4)


# --- generation -----------------------------------------------------------------------------------


def test_generation_stops_and_cuts(lm, model):
  """Texts end before the first stop string, each row at its own length, and exclude the context."""
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
  """`generate` ends the row there, but the new text does not contain it: the row is continued."""
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
  assert sampled or options == {"do_sample": False}  # overrides the model's defaults


def test_sampling_is_seeded_and_repeats_differ(lm, model):
  """A repeated request is sampled again; batch sizes change nothing."""
  options = {"max_gen_toks": 8, "temperature": 1.0, "until": []}
  asked = requests(*[("the dog", options)] * 3, ("fox", options))
  made = model.generate_until(asked, disable_tqdm=True)
  assert len(set(made[:3])) == 3
  assert LmEvalModel(lm, 1).generate_until(asked, disable_tqdm=True) == made
  assert LmEvalModel(lm, 4, seed=9).generate_until(asked, disable_tqdm=True) != made


def test_more_new_tokens_than_positions(model):
  with pytest.raises(UserError, match="256 new tokens, and the model has 48 positions"):
    model.generate_until(requests(("the dog", {"until": "x"})), disable_tqdm=True)


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_stop_is_asked_between_batches(lm, call):
  """Nothing is computed after the batch in which it first returns True, and it ends the call."""
  options = {"max_gen_toks": 2, "until": []}
  arguments = {
    "loglikelihood": [(TEXT[:200], " dog"), (TEXT[1:201], " fox")] * 4,
    "loglikelihood_rolling": [(TEXT[:150] + word,) for word in WORDS[:8]],
    "generate_until": [(word, options) for word in WORDS[:8]],
  }[call]
  answers = iter([False, True])
  stoppable = LmEvalModel(lm, batch_size=1, stop=lambda: next(answers))
  with pytest.raises(Stopped):
    getattr(stoppable, call)(requests(*arguments), disable_tqdm=True)
  assert next(answers, None) is None
