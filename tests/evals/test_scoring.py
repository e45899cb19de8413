"""Log-probabilities of targets: packed texts do not see one another, and few shapes compile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.evals import scoring
from tests.helpers.tiny_lm import log_probabilities, tiny_lm


@pytest.fixture(scope="module")
def lm():
  return tiny_lm()


def test_equal_inputs_are_computed_once(lm):
  """Requests with the same inputs share a text, for as many targets as it has inputs."""
  scorer = scoring.Scorer(lm, 4)
  asked = [scoring.ScoringRequest((7, 8, 9), (i,)) for i in range(200)] + [
    scoring.ScoringRequest((7,), (1,))
  ] * 3
  (first, *_) = scorer.pack(asked)
  assert [len(text) for row in first.rows for text in row] == [2] + [3] * 63
  found = dict(scorer.score(asked))
  logprobs_V = log_probabilities(lm, [7, 8, 9])[-1]
  np.testing.assert_allclose(
    [found[i].logprob_N[0] for i in range(200)], logprobs_V[:200], atol=1e-5
  )


def test_packed_texts_do_not_see_one_another(lm):
  rng = np.random.default_rng(0)
  asked = [
    scoring.ScoringRequest(tuple(rng.integers(0, 280, n)), tuple(rng.integers(0, 280, -(-n // 2))))
    for n in rng.integers(1, 49, 60)
  ]
  found = dict(scoring.Scorer(lm, 4).score(asked))
  for i, (inputs, targets) in enumerate(asked):
    logprobs_NxV = log_probabilities(lm, list(inputs))[-len(targets) :]
    expected_N = logprobs_NxV[np.arange(len(targets)), targets]
    np.testing.assert_allclose(found[i].logprob_N, expected_N, atol=1e-5)
    np.testing.assert_array_equal(found[i].greedy_N, logprobs_NxV.argmax(-1) == targets)


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 9))
def test_rows_hold_every_text_once_and_are_full(lm, lengths, batch_size):
  scorer = scoring.Scorer(lm, batch_size)
  scorer._widths = scoring.row_widths(700)
  asked = [scoring.ScoringRequest((i,) * length, (1,)) for i, length in enumerate(lengths)]
  batches = list(scorer.pack(asked))
  held = [i for batch in batches for row in batch.rows for text in row for i in text]
  assert sorted(held) == list(range(len(lengths)))
  for batch in batches:
    filled = [sum(lengths[text[0]] for text in row) for row in batch.rows]
    assert len(batch.rows) <= batch_size and max(filled) <= batch.width
    # A later text does not fit into any earlier row.
    for b in range(len(filled)):
      assert all(
        filled[b] + lengths[text[0]] > batch.width for r in batch.rows[b + 1 :] for text in r
      )


def test_few_programs(lm):
  """1,000 requests of all lengths compile a shape, and one with fewer rows; again, none."""
  rng, scorer, compiled = np.random.default_rng(0), scoring.Scorer(lm, 4), []
  asked = [
    scoring.ScoringRequest(tuple(rng.integers(0, 280, n)), (3,)) for n in rng.integers(1, 49, 1000)
  ]
  for _ in range(2):
    compiled.append(scoring._score._cache_size())
    assert len(dict(scorer.score(asked))) == 1000
  compiled.append(scoring._score._cache_size())
  assert compiled[1] - compiled[0] <= 2 and compiled[2] == compiled[1]


def test_widths():
  assert scoring.row_widths(48) == [48]
  assert scoring.row_widths(256) == [256]
  assert scoring.row_widths(700) == [256, 384, 512, 700]
  assert scoring.row_widths(2048) == [256, 384, 512, 768, 1024, 1536, 2048]
