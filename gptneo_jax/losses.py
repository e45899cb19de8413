"""Losses: next-token cross-entropy in float32, with the original's z-loss."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLosses(NamedTuple):
  """Per-token terms, float32, each B x T, already multiplied by the weights."""

  nll_BxT: jax.Array  # negative log-likelihood, nats
  z_BxT: jax.Array  # log(Z)^2, to be multiplied by the z-loss coefficient


def token_losses(
  logits_BxTxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array | None = None
) -> TokenLosses:
  """Cross-entropy and squared log-partition of every token, in float32.

  The z term is Mesh-TensorFlow's `softmax_cross_entropy_with_logits(z_loss=1e-4)`, always on in the
  original (EleutherAI/gpt-neo); it keeps log Z near 0.
  """
  logits_BxTxV = logits_BxTxV.astype(jnp.float32)
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  target_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
  nll_BxT, z_BxT = log_z_BxT - target_BxT, log_z_BxT**2
  if weights_BxT is not None:
    nll_BxT, z_BxT = nll_BxT * weights_BxT, z_BxT * weights_BxT
  return TokenLosses(nll_BxT, z_BxT)
