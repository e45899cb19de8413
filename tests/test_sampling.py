"""The processors on random logits, and the distribution that is drawn from."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax import sampling


@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 40), seed=st.integers(0, 1000))
def test_top_k_keeps_the_k_largest_and_ties(k, seed):
  logits_BxV = np.random.default_rng(seed).integers(-5, 6, (3, 24)).astype(np.float32)
  kept = np.asarray(sampling.keep_top_k(logits_BxV, k))
  for row, out in zip(logits_BxV, kept):
    threshold = np.sort(row)[-min(k, 24)]
    np.testing.assert_array_equal(np.isfinite(out), row >= threshold)
    np.testing.assert_array_equal(out[row >= threshold], row[row >= threshold])


def test_temperature_zero_is_greedy():
  logits = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
  token = sampling.sample_token(jax.random.key(0), logits, temperature=0.0, top_k=5)
  np.testing.assert_array_equal(token, logits.argmax(-1))


def test_draws_follow_the_processed_probabilities():
  """Chi-square of 20,000 draws against softmax(logits / temperature) of the 6 largest."""
  logits_1xV = np.random.default_rng(1).normal(size=(1, 12)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 20_000)
  draw = jax.vmap(lambda key: sampling.sample_token(key, logits_1xV, temperature=0.7, top_k=6)[0])
  counts = np.bincount(np.asarray(draw(keys)), minlength=12)
  kept = np.argsort(logits_1xV[0])[-6:]
  assert counts.sum() == counts[kept].sum()
  weights = np.exp(logits_1xV[0, kept] / 0.7)
  expected = weights / weights.sum() * counts.sum()
  chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
  assert chi_square < 20.5  # 5 degrees of freedom: passed by chance with probability 0.999
