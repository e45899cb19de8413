"""Losses, in float32: next-token cross-entropy with the original's z-loss, and those of the heads.

The heads' are those of transformers' modeling_gpt_neo and modeling_gpt2, as means.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptneo_jax.attention.mask import MASKED


def mask_padding(logits: jax.Array, vocab_size: int | jax.Array) -> jax.Array:
  """Logits with no probability for the ids from `vocab_size` on, which only pad the vocabulary."""
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(ids < vocab_size, logits, MASKED)


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


IGNORED = -100  # a label that does not count


def cross_entropy(logits: jax.Array, labels: jax.Array, ignored: int = IGNORED) -> jax.Array:
  """Mean over the labels that are not `ignored`, nan if none counts.

  logits: … x C; labels: … in int.
  """
  counts = labels != ignored
  nll = token_losses(logits, jnp.where(counts, labels, 0), counts.astype(jnp.float32)).nll_BxT
  # The division keeps XLA from making one sum of both, in which thousands of terms would round to
  # the last places of a large one.
  return (nll.sum(-1) / counts.sum()).sum()


def next_token_cross_entropy(logits_BxTxV: jax.Array, labels_BxT: jax.Array) -> jax.Array:
  """`cross_entropy` of labels that are the input ids (or IGNORED): shifted here, as in HF."""
  return cross_entropy(logits_BxTxV[..., :-1, :], labels_BxT[..., 1:])


def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.square(outputs.astype(jnp.float32) - targets.astype(jnp.float32)).mean()


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean over all labels of all rows; targets are 0, 1 or between, of the logits' shape."""
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  return (jax.nn.softplus(logits) - targets * logits).mean()


def span_cross_entropy(
  start_BxT: jax.Array, end_BxT: jax.Array, start_B: jax.Array, end_B: jax.Array
) -> jax.Array:
  """Half the sum of the cross-entropies of a span's first and last position.

  Positions past the end are clamped to T, and T does not count.
  """
  T = start_BxT.shape[-1]
  first, last = (
    cross_entropy(logits, jnp.clip(at, 0, T), ignored=T)
    for logits, at in ((start_BxT, start_B), (end_BxT, end_B))
  )
  return (first + last) / 2
