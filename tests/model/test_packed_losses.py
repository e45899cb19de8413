"""Losses of packed rows against their definition in float64, and the heads' on whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.model import losses, packed_losses

B, T, C, E = 2, 12, 4, 3
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 3 + [2] * 3 + [3] * 6])


def drawn(seed=0):
  rng = np.random.default_rng(seed)
  return rng, rng.standard_normal((B, T, C)).astype(np.float32)


def nll(logits, label) -> float:
  logits = np.asarray(logits, np.float64)
  return float(np.log(np.exp(logits).sum()) - logits[label])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_tokens(smoothing):
  rng, outputs = drawn()
  labels = rng.integers(0, C, (B, T))
  weights = rng.choice([0.0, 1.0, 2.5], (B, T)).astype(np.float32)
  labels[weights == 0] = -100
  expected = 0.0
  for b, t in zip(*np.nonzero(weights)):
    mean = np.mean([nll(outputs[b, t], label) for label in range(C)])
    one = (1 - smoothing) * nll(outputs[b, t], labels[b, t]) + smoothing * mean
    expected += weights[b, t] * one / weights.sum()
  batch = {"labels": labels, "weights": weights}
  found = packed_losses.token_labels(outputs, batch, weights.sum(), smoothing=smoothing)
  assert float(found) == pytest.approx(expected, rel=1e-6)


def span_batch():
  return {
    "segment_ids": SEGMENTS,
    "starts": np.array([[1, 6, 0], [2, 3, 11]]),
    "ends": np.array([[4, 6, 0], [2, 5, 11]]),
    "weights": np.array([[1, 1, 0], [1, 0, 1]], np.float32),
  }


def test_spans():
  _, outputs = drawn()
  batch = span_batch()
  expected = 0.0
  for b, e in zip(*np.nonzero(batch["weights"])):
    (own,) = np.nonzero(SEGMENTS[b] == e + 1)
    for side, at in enumerate((batch["starts"][b, e], batch["ends"][b, e])):
      expected += nll(outputs[b, own, side], list(own).index(at)) / 2 / 4
  found = packed_losses.spans(outputs[..., :2], batch, batch["weights"].sum())
  assert float(found) == pytest.approx(expected, rel=1e-6)


def test_other_tokens_have_no_gradient_of_a_span():
  _, outputs = drawn()
  batch = span_batch() | {"weights": np.array([[0, 1, 0], [0, 0, 0]], np.float32)}
  gradient = jax.grad(lambda x: packed_losses.spans(x, batch, jnp.float32(1)))(outputs[..., :2])
  there = np.asarray(gradient).any(-1)
  np.testing.assert_array_equal(there[0], SEGMENTS[0] == 2)
  assert not there[1].any()
  elsewhere = np.where((SEGMENTS == 2)[..., None], outputs, 100 * outputs)[..., :2]
  one, other = (packed_losses.spans(x, batch, 1.0) for x in (outputs[..., :2], elsewhere))
  assert one.tobytes() == other.tobytes()


def test_rows_of_one_example_have_the_losses_of_the_heads():
  rng, outputs = drawn()
  labels = rng.integers(0, C, (B, T))
  labels[:, ::3] = -100
  counts = (labels >= 0).astype(np.float32)
  found = packed_losses.token_labels(outputs, {"labels": labels, "weights": counts}, counts.sum())
  assert float(found) == pytest.approx(float(losses.cross_entropy(outputs, labels)), rel=1e-6)
  starts, ends = rng.integers(0, T, (2, B))
  batch = {
    "segment_ids": np.ones((B, T), int), "starts": starts[:, None], "ends": ends[:, None],
    "weights": np.ones((B, 1), np.float32),
  }  # fmt: skip
  found = packed_losses.spans(outputs[..., :2], batch, 2.0)
  expected = losses.span_cross_entropy(outputs[..., 0], outputs[..., 1], starts, ends)
  assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_batch_in_which_nothing_counts_is_0():
  _, outputs = drawn()
  batch = span_batch() | {"weights": np.zeros((B, E), np.float32)}
  assert float(packed_losses.spans(outputs[..., :2], batch, 5.0)) == 0
  batch = {"labels": np.full((B, T), -100), "weights": np.zeros((B, T), np.float32)}
  assert float(packed_losses.token_labels(outputs, batch, 5.0)) == 0
