"""From logits to a token: pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def keep_top_k(logits_BxV: jax.Array, k: int) -> jax.Array:
  """All below the k-th largest logit of a row becomes -inf; ties with it are kept (as in HF)."""
  k = min(k, logits_BxV.shape[-1])
  kth_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
  return jnp.where(logits_BxV < kth_Bx1, -jnp.inf, logits_BxV)


def sample_token(
  key: jax.Array, logits_BxV: jax.Array, *, temperature: float, top_k: int
) -> jax.Array:
  """Next ids, int32 B. temperature 0 is greedy; top_k 0 keeps the whole vocabulary."""
  if temperature == 0.0:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  logits_BxV = logits_BxV / temperature
  if top_k:
    logits_BxV = keep_top_k(logits_BxV, top_k)
  return jax.random.categorical(key, logits_BxV, axis=-1).astype(jnp.int32)
