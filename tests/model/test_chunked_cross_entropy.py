"""The chunked loss against one that holds all logits (losses.py, itself tested in float64)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.model import chunked_cross_entropy
from gptneo_jax.model.chunked_cross_entropy import (
  CPU_CHUNK,
  loss_sums,
  losses_of_tokens,
  predictions_of_tokens,
)
from gptneo_jax.model.losses import mask_padding, token_losses

D = 16


def with_all_logits(x_BxTxD, table_VxD, targets_BxT, weights_BxT, vocab_size, z_loss):
  """The same sums with all logits at once."""
  logits_BxTxV = jnp.einsum(
    "BTD,VD->BTV", x_BxTxD, table_VxD.astype(x_BxTxD.dtype), preferred_element_type=jnp.float32
  )
  losses = token_losses(mask_padding(logits_BxTxV, vocab_size), targets_BxT, weights_BxT)
  return losses.nll_BxT.sum() + z_loss * losses.z_BxT.sum(), losses


def inputs(B=3, T=7, V=29, rows=32, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return (
    jnp.asarray(rng.standard_normal((B, T, D)), dtype),
    jnp.asarray(rng.standard_normal((rows, D)), jnp.float32),
    rng.integers(0, V, (B, T)).astype(np.int32),
    rng.choice([0.0, 0.5, 1.0], (B, T)).astype(np.float32),
    V,
  )


def relative_error(got, expected):
  """The largest difference over the largest entry."""
  got, expected = (np.asarray(x, np.float64) for x in (got, expected))
  return np.abs(got - expected).max() / np.abs(expected).max()


def take_chunks(monkeypatch, chunk, columns):
  """Chunks of `chunk` tokens; with `columns`, a GPU's padding of the logits to a multiple."""
  monkeypatch.setattr(chunked_cross_entropy, "_on_gpu", lambda: columns is not None)
  monkeypatch.setattr(chunked_cross_entropy, "_chunk_size", lambda: chunk)
  monkeypatch.setattr(chunked_cross_entropy, "GPU_COLUMNS", columns)


CHUNKS = [(1, None), (4, None), (21, None), (1024, None), (4, 5), (1024, 128)]


@pytest.mark.parametrize("chunk, columns", CHUNKS)
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.5])
def test_values_and_gradients(monkeypatch, chunk, columns, z_loss):
  take_chunks(monkeypatch, chunk, columns)
  x, table, targets, weights, V = inputs()

  def chunked(x, table):
    sums = loss_sums(3.0 * x, table, targets, weights, V, z_loss)
    return sums.objective, sums.nll

  def at_once(x, table):
    objective, losses = with_all_logits(3.0 * x, table, targets, weights, V, z_loss)
    return objective, losses.nll_BxT.sum()

  gradients = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  (got, got_nll), got_grads = jax.jit(gradients(chunked))(x, table)
  (expected, nll), expected_grads = jax.jit(gradients(at_once))(x, table)
  np.testing.assert_allclose([got, got_nll], [expected, nll], rtol=1e-6)
  for g, e in zip(got_grads, expected_grads):
    assert relative_error(g, e) < 1e-6
  assert not np.asarray(got_grads[1])[V:].any()  # rows that only pad the vocabulary
  np.testing.assert_allclose(chunked(x, table), [expected, nll], rtol=1e-6)  # without gradients


@pytest.mark.parametrize("chunk, columns", CHUNKS)
def test_losses_of_tokens(monkeypatch, chunk, columns):
  take_chunks(monkeypatch, chunk, columns)
  x, table, targets, weights, V = inputs()
  got = losses_of_tokens(x, table, targets, weights, V)
  _, expected = with_all_logits(x, table, targets, weights, V, 0.0)
  np.testing.assert_allclose(got.nll_BxT, expected.nll_BxT, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.z_BxT, expected.z_BxT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk, columns", CHUNKS)
def test_predictions_of_tokens(monkeypatch, chunk, columns):
  """V = 3, so that many a target is the likeliest; the last two rows only pad the vocabulary."""
  take_chunks(monkeypatch, chunk, columns)
  x, table, targets, weights, V = inputs(V=3, rows=5)
  got = predictions_of_tokens(x, table, targets, weights, V)
  logits = np.einsum("BTD,VD->BTV", np.asarray(x, np.float64), np.asarray(table, np.float64))[
    ..., :V
  ]
  probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  of_target = np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]
  correct = probabilities.argmax(-1) == targets
  assert 0 < correct.sum() < correct.size
  np.testing.assert_allclose(got.nll_BxT, -np.log(of_target) * weights, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.confidence_BxT, probabilities.max(-1) * weights, rtol=1e-5)
  np.testing.assert_array_equal(got.correct_BxT, correct * weights)


@pytest.mark.parametrize("counted", [0, 1, 4, 8])
def test_chunks_of_tokens_without_weight_are_not_computed(monkeypatch, counted):
  """Such tokens are not numbers here, and would make all that they touch so."""
  take_chunks(monkeypatch, 1 if counted == 1 else 4, None)
  x, table, targets, _, V = inputs()
  counts = np.zeros(targets.size, bool)
  counts[np.random.default_rng(0).permutation(targets.size)[:counted]] = True
  counts = counts.reshape(targets.shape)
  weights = np.where(counts, 0.5, 0.0).astype(np.float32)
  broken = jnp.where(counts[..., None], x, jnp.nan)
  objective = lambda x, table: loss_sums(x, table, targets, weights, V, 0.1).objective
  gradients = jax.value_and_grad(objective, argnums=(0, 1))
  got, got_grads = jax.jit(gradients)(broken, table)
  expected, grads = jax.jit(gradients)(x, table)
  np.testing.assert_array_equal(got, expected)
  for g, e in zip(got_grads, grads):
    np.testing.assert_array_equal(g, e)
  at_once = lambda x, table: with_all_logits(x, table, targets, weights, V, 0.1)[0]
  np.testing.assert_allclose(got, at_once(x, table), rtol=1e-6)
  for g, e in zip(got_grads, jax.grad(at_once, argnums=(0, 1))(x, table)):
    np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)
  for function in (losses_of_tokens, predictions_of_tokens):
    for got, expected in zip(*(function(y, table, targets, weights, V) for y in (broken, x))):
      np.testing.assert_array_equal(got, expected)
      assert not np.asarray(got)[~counts].any()


def test_bfloat16_hidden_states_give_float32_sums_and_table_gradients():
  x, table, targets, weights, V = inputs(dtype=jnp.bfloat16)

  def objective(x, table):
    return loss_sums(x, table, targets, weights, V, 0.1).objective

  value, (dx, dtable) = jax.value_and_grad(objective, argnums=(0, 1))(x, table)
  assert (value.dtype, dx.dtype, dtable.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
  rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
  exact = x.astype(jnp.float32)
  expected, grads = jax.value_and_grad(
    lambda x, table: with_all_logits(x, table, targets, weights, V, 0.1)[0], argnums=(0, 1)
  )(exact, rounded)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for got, e in zip((dx, dtable), grads):
    assert relative_error(got, e) < 2**-7  # the gradient of the logits is rounded to bfloat16


def temporary_bytes(function, B, T, width, V) -> int:
  """Of the compiled gradient of a loss at this size; nothing is run."""
  shapes = (
    jax.ShapeDtypeStruct((B, T, width), jnp.float32),
    jax.ShapeDtypeStruct((V, width), jnp.float32),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
    jax.ShapeDtypeStruct((B, T), jnp.float32),
  )
  gradient = jax.grad(lambda *a: function(*a, V, 1e-4), argnums=(0, 1), has_aux=True)
  return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_at_125m_is_lower_by_most_of_the_logits():
  B, T, width, V = 4, 2048, 768, 50257
  logits = B * T * V * 4
  at_once = temporary_bytes(with_all_logits, B, T, width, V)
  chunked = temporary_bytes(lambda *a: tuple(loss_sums(*a)), B, T, width, V)
  print(f"temporary MiB: {at_once >> 20} at once, {chunked >> 20} in chunks")
  assert at_once > logits  # the measure sees them
  assert at_once - chunked >= 0.8 * logits
  # The table's gradient, the logits of one chunk, the hidden states and their gradient.
  assert chunked < 1.1 * 4 * (V * width + CPU_CHUNK * V + 2 * B * T * width)
