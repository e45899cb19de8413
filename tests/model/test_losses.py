"""Losses against a float64 transcription in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.model.losses import token_losses

B, T, V = 3, 7, 29


def numpy_losses(logits_BxTxV, targets_BxT):
  """-log softmax at the target, and log(Z)^2, in float64 and without a stabilising shift."""
  logits_BxTxV = np.asarray(logits_BxTxV, np.float64)
  log_z_BxT = np.log(np.exp(logits_BxTxV).sum(-1))
  nll_BxT = np.empty(targets_BxT.shape)
  for b, t in np.ndindex(*targets_BxT.shape):
    nll_BxT[b, t] = log_z_BxT[b, t] - logits_BxTxV[b, t, targets_BxT[b, t]]
  return nll_BxT, log_z_BxT**2


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  logits_BxTxV = (4 * rng.standard_normal((B, T, V))).astype(np.float32)
  weights_BxT = rng.choice([0.0, 0.5, 1.0], (B, T)).astype(np.float32)
  return logits_BxTxV, rng.integers(0, V, (B, T)), weights_BxT


def test_values(batch):
  logits_BxTxV, targets_BxT, _ = batch
  losses = token_losses(logits_BxTxV, targets_BxT)
  nll_BxT, z_BxT = numpy_losses(logits_BxTxV, targets_BxT)
  np.testing.assert_allclose(losses.nll_BxT, nll_BxT, rtol=1e-6, atol=2e-6)
  np.testing.assert_allclose(losses.z_BxT, z_BxT, rtol=1e-6)


def test_weights_multiply_both_terms(batch):
  logits_BxTxV, targets_BxT, weights_BxT = batch
  losses = token_losses(logits_BxTxV, targets_BxT, weights_BxT)
  nll_BxT, z_BxT = numpy_losses(logits_BxTxV, targets_BxT)
  np.testing.assert_allclose(losses.nll_BxT, nll_BxT * weights_BxT, rtol=1e-6, atol=2e-6)
  np.testing.assert_allclose(losses.z_BxT, z_BxT * weights_BxT, rtol=1e-6)


@pytest.mark.parametrize("coefficient", [0.0, 1e-4, 0.5])
def test_gradient_of_both_terms(batch, coefficient):
  """d nll = w (p - onehot); d z = 2 w log(Z) p."""
  logits_BxTxV, targets_BxT, weights_BxT = batch

  def total(logits_BxTxV):
    losses = token_losses(logits_BxTxV, targets_BxT, weights_BxT)
    return losses.nll_BxT.sum() + coefficient * losses.z_BxT.sum()

  exp_BxTxV = np.exp(logits_BxTxV.astype(np.float64))
  z_BxTx1 = exp_BxTxV.sum(-1, keepdims=True)
  p_BxTxV = exp_BxTxV / z_BxTx1
  expected = p_BxTxV - np.eye(V)[targets_BxT] + 2 * coefficient * np.log(z_BxTx1) * p_BxTxV
  got = jax.grad(total)(jnp.asarray(logits_BxTxV))
  np.testing.assert_allclose(got, expected * weights_BxT[..., None], atol=2e-6)


def test_large_logits_stay_finite_and_padded_ids_do_not_count(batch):
  logits_BxTxV, targets_BxT, _ = batch
  shifted = token_losses(logits_BxTxV + np.float32(1e4), targets_BxT)
  np.testing.assert_allclose(
    shifted.nll_BxT, numpy_losses(logits_BxTxV, targets_BxT)[0], atol=4e-3, rtol=0
  )
  masked = np.full((B, T, 5), np.finfo(np.float32).min, np.float32)
  padded = token_losses(np.concatenate([logits_BxTxV, masked], -1), targets_BxT)
  for got, expected in zip(padded, token_losses(logits_BxTxV, targets_BxT)):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)


def test_half_precision_logits_are_reduced_in_float32(batch):
  logits_BxTxV, targets_BxT, _ = batch
  rounded = jnp.asarray(logits_BxTxV, jnp.bfloat16)
  losses = token_losses(rounded, targets_BxT)
  assert losses.nll_BxT.dtype == losses.z_BxT.dtype == jnp.float32
  nll_BxT, z_BxT = numpy_losses(rounded.astype(jnp.float32), targets_BxT)
  np.testing.assert_allclose(losses.nll_BxT, nll_BxT, rtol=1e-6, atol=2e-6)
  np.testing.assert_allclose(losses.z_BxT, z_BxT, rtol=1e-6)
