"""Plain attention, O(T^2), softmax in float32: what the other backends are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MASKED, MaskSpec


def probabilities(
  q_BxTxHxK: jax.Array, k_BxTxHxK: jax.Array, spec: MaskSpec, scale: float
) -> jax.Array:
  """The attention probabilities: B x H x T x T, float32, rows sum to 1."""
  scores_BxHxTxT = jnp.einsum(
    "BTHK,BSHK->BHTS", q_BxTxHxK, k_BxTxHxK, preferred_element_type=jnp.float32
  )
  mask = spec.dense_Bx1xTxT(q_BxTxHxK.shape[1])
  scores_BxHxTxT = jnp.where(mask, scores_BxHxTxT * scale, MASKED)
  return jax.nn.softmax(scores_BxHxTxT, axis=-1)


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  scale: float,
  dropout: Dropout | None = None,
) -> jax.Array:
  """Attention as transformers' eager GPT-Neo computes it; B x T x H x K in the type of v.

  Scores and softmax are float32 whatever the inputs; probabilities are rounded to the type of v
  before they are dropped and multiplied.
  """
  probs_BxHxTxT = probabilities(q_BxTxHxK, k_BxTxHxK, spec, scale).astype(v_BxTxHxK.dtype)
  if dropout is not None:
    probs_BxHxTxT = dropout(probs_BxHxTxT)
  return jnp.einsum("BHTS,BSHK->BTHK", probs_BxHxTxT, v_BxTxHxK)
