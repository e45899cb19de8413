"""Sliding-window attention in plain XLA, in blocks: time and memory linear in T.

A block of queries sees its own keys and those of the blocks before it that the window reaches;
nothing of size T x T exists, forward or backward.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.reference import MASKED
from gptneo_jax.attention.request import Request

_PADDING_SEGMENT = -1  # segment of positions outside the sequence: no query of it is kept


def refusal(request: Request) -> str | None:
  """Why this backend cannot serve, None if it can."""
  return (
    "it serves windowed layers only, and this one is global" if request.window is None else None
  )


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  scale: float,
  dropout: Dropout | None = None,
  block: int | None = None,
) -> jax.Array:
  """Windowed causal attention; the values of `reference.attend` at O(T · window) cost.

  block: queries per block (default: half the window, which wastes 1/2 of a window's scores per
    query where a whole window would waste a whole one). Raises ValueError without a window.
  """
  if spec.window is None:
    raise ValueError("local attention needs a window; global layers take another backend")
  T = q_BxTxHxK.shape[1]
  b = min(block or max(1, math.ceil(spec.window / 2)), T)
  halo = math.ceil((spec.window - 1) / b)  # earlier blocks that the first query of a block reaches
  N = math.ceil(T / b)

  q_BxNxbxHxK = _to_blocks(q_BxTxHxK, b, N)
  k_BxNxsxHxK = _with_halo(k_BxTxHxK, b, N, halo)
  v_BxNxsxHxK = _with_halo(v_BxTxHxK, b, N, halo)

  scores_BxNxHxbxs = jnp.einsum(
    "BNTHK,BNSHK->BNHTS", q_BxNxbxHxK, k_BxNxsxHxK, preferred_element_type=jnp.float32
  )
  mask = _block_mask(spec, T, b, N, halo)
  scores_BxNxHxbxs = jnp.where(mask, scores_BxNxHxbxs * scale, MASKED)
  probs_BxNxHxbxs = jax.nn.softmax(scores_BxNxHxbxs, axis=-1).astype(v_BxTxHxK.dtype)
  if dropout is not None:
    probs_BxNxHxbxs = dropout(probs_BxNxHxbxs)
  out_BxNxbxHxK = jnp.einsum("BNHTS,BNSHK->BNTHK", probs_BxNxHxbxs, v_BxNxsxHxK)
  return out_BxNxbxHxK.reshape(q_BxTxHxK.shape[0], N * b, *q_BxTxHxK.shape[2:])[:, :T]


def _pad(x_BxT: jax.Array, before: int, after: int, value: int = 0) -> jax.Array:
  """Pads axis 1 of B x T x … on both sides."""
  widths = [(0, 0), (before, after)] + [(0, 0)] * (x_BxT.ndim - 2)
  return jnp.pad(x_BxT, widths, constant_values=value)


def _to_blocks(x_BxT: jax.Array, b: int, N: int, value: int = 0) -> jax.Array:
  """B x T x … to B x N x b x …, the tail filled with `value`."""
  x_BxT = _pad(x_BxT, 0, N * b - x_BxT.shape[1], value)
  return x_BxT.reshape(x_BxT.shape[0], N, b, *x_BxT.shape[2:])


def _with_halo(x_BxT: jax.Array, b: int, N: int, halo: int, value: int = 0) -> jax.Array:
  """B x T x … to B x N x (halo + 1)·b x …: every block behind the `halo` blocks before it."""
  blocks = _to_blocks(x_BxT, b, N, value)
  padded = _pad(blocks, halo, 0, value)
  return jnp.concatenate([padded[:, i : i + N] for i in range(halo)] + [blocks], axis=2)


def _block_mask(spec: MaskSpec, T: int, b: int, N: int, halo: int) -> jax.Array:
  """Which scores count, bool, (1 or B) x N x 1 x b x (halo + 1)·b."""
  assert spec.window is not None
  query_b = jnp.arange(b)[:, None]
  key_s = jnp.arange(-halo * b, b)[None, :]  # relative to the block's first query
  visible_bxs = (key_s <= query_b) & (key_s > query_b - spec.window)
  exists_Nxs = jnp.arange(N)[:, None] * b + key_s >= 0
  mask = visible_bxs[None] & exists_Nxs[:, None, :]
  mask = mask[None, :, None]
  if spec.segment_ids_BxT is not None:
    query = _to_blocks(spec.segment_ids_BxT, b, N, _PADDING_SEGMENT)
    key = _with_halo(spec.segment_ids_BxT, b, N, halo, _PADDING_SEGMENT)
    mask = mask & (query[:, :, None, :, None] == key[:, :, None, None, :])
  return mask
