"""Causal attention in plain XLA, block by block: nothing of size T x T exists, forward or backward.

Queries and keys are cut into blocks, and a scan visits the pairs of blocks that the mask reaches:
those below the diagonal, for a window only those in its band, and in rows of segments only those of
which both have tokens of one segment. So a windowed layer costs O(T · window), a global one half of
T², and short examples packed into long rows hardly more than their own length. The softmax is
online, a running maximum and sum over the pairs (Milakov and Gimelshein, 2018); the backward pass
recomputes the probabilities from the sums that the forward pass keeps (Dao et al., 2022).

The program has one scan body for any T, and a pair's scores stay in a CPU's cache:
experiments/bench_attention.py compares it with the reference. Its rule of differentiation is for
reverse mode; for forward mode of the loss itself there is the reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MASKED, MaskSpec
from gptneo_jax.attention.residuals import RESIDUALS
from gptneo_jax.hardware import current_hardware

_LEAST_BLOCK, _LARGEST_BLOCK = 64, 512
_PADDING_SEGMENT = -1  # of the positions that pad the sequence


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  scale: float,
  dropout: Dropout | None = None,
  block: int | None = None,
) -> jax.Array:
  """The values of `reference.attend`; memory for scores B x H x block².

  block: queries and keys of a block; `block_size` by default.
  """
  T = q_BxTxHxK.shape[1]
  packed = spec.segment_ids_BxT is not None
  b = min(block or block_size(T, spec.window, packed), T)
  padding = -T % b
  q, k, v = (_heads_first(x, padding) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
  segments_BxT = spec.segment_ids_BxT
  if segments_BxT is not None:
    segments_BxT = jnp.pad(segments_BxT, ((0, 0), (0, padding)), constant_values=_PADDING_SEGMENT)
  plan = Plan(b, spec.window, scale, dropout.rate if dropout else 0.0)
  out_BxHxTxK = _attend(plan, q, k, v, segments_BxT, dropout.key if dropout else None)
  return out_BxHxTxK.swapaxes(1, 2)[:, :T]


def block_size(length: int, window: int | None, packed: bool) -> int:
  """Half a window, or a quarter of the sequence, from 64 to 512: small blocks waste less above the
  diagonal and outside the window, large ones take fewer steps. In rows of segments on a CPU, where
  a step is cheap, an eighth of the row at most: more pairs of blocks have no segment in common."""
  size = length // 4 if window is None else window // 2
  if packed and current_hardware().platform == "cpu":
    size = min(size, length // 8)
  return max(_LEAST_BLOCK, min(size, _LARGEST_BLOCK))


class Plan(NamedTuple):
  """What the program is compiled for."""

  block: int
  window: int | None
  scale: float
  dropout_rate: float

  def pairs(self, length: int) -> np.ndarray:
    """Pairs (query block, key block) that see each other, int32; a row's diagonal first, so that
    its running maximum is a real score from the start."""
    b = self.block
    reach = length if self.window is None else math.ceil((self.window - 1) / b)
    blocks = range(length // b)
    return np.array([(i, j) for i in blocks for j in range(i, max(i - reach, 0) - 1, -1)], np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT, key) -> jax.Array:
  return _forward(plan, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT, key)[0]


def _forward(plan: Plan, q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT, key):
  """The output, and the residuals: the inputs, the output, the logarithms of the sums."""
  B, H, T, K = q_BxHxTxK.shape
  b = plan.block

  def visit(carry, pair):  # carry: running maximum, sum and output of every query
    i, j = pair
    scores = _scores(plan, _cut(q_BxHxTxK, i, b), _cut(k_BxHxTxK, j, b), segments_BxT, i, j)
    old_max, old_sum, old_out = (_cut(x, i, b) for x in carry)
    new_max = jnp.maximum(old_max, scores.max(axis=-1))
    probs = jnp.exp(scores - new_max[..., None])
    correction = jnp.exp(old_max - new_max)
    new_sum = old_sum * correction + probs.sum(axis=-1)
    values = jnp.einsum(
      "BHTS,BHSK->BHTK",
      (probs * _kept(plan, key, i, j, probs.shape)).astype(v_BxHxTxK.dtype),
      _cut(v_BxHxTxK, j, b),
      preferred_element_type=jnp.float32,
    )
    new_out = old_out * correction[..., None] + values
    new = (new_max, new_sum, new_out)
    return tuple(_put(x, y, i, b) for x, y in zip(carry, new))

  start = (
    jnp.full((B, H, T), MASKED),
    jnp.zeros((B, H, T), jnp.float32),
    jnp.zeros((B, H, T, K), jnp.float32),
  )
  max_BxHxT, sum_BxHxT, out_BxHxTxK = _visit_pairs(plan, T, segments_BxT, visit, start)
  out_BxHxTxK = (out_BxHxTxK / sum_BxHxT[..., None]).astype(v_BxHxTxK.dtype)
  out_BxHxTxK = checkpoint_name(out_BxHxTxK, RESIDUALS)
  log_sum_BxHxT = checkpoint_name(max_BxHxT + jnp.log(sum_BxHxT), RESIDUALS)
  kept = (q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT, key, out_BxHxTxK, log_sum_BxHxT)
  return out_BxHxTxK, kept


def _backward(plan: Plan, kept, dout_BxHxTxK):
  q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, segments_BxT, key, out_BxHxTxK, log_sum_BxHxT = kept
  b = plan.block
  # Sum over the keys of probability times its gradient.
  mean_BxHxT = jnp.einsum(
    "BHTK,BHTK->BHT", dout_BxHxTxK, out_BxHxTxK, preferred_element_type=jnp.float32
  )
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def visit(carry, pair):
    dq_BxHxTxK, dk_BxHxTxK, dv_BxHxTxK = carry
    i, j = pair
    q, dout = _cut(q_BxHxTxK, i, b), _cut(dout_BxHxTxK, i, b)
    k, v = _cut(k_BxHxTxK, j, b), _cut(v_BxHxTxK, j, b)
    scores = _scores(plan, q, k, segments_BxT, i, j)
    probs = jnp.exp(scores - _cut(log_sum_BxHxT, i, b)[..., None])
    kept_of = _kept(plan, key, i, j, probs.shape)
    dprobs = product("BHTK,BHSK->BHTS", dout, v) * kept_of
    dscores = (probs * (dprobs - _cut(mean_BxHxT, i, b)[..., None]) * plan.scale).astype(q.dtype)
    dv = product("BHTS,BHTK->BHSK", (probs * kept_of).astype(q.dtype), dout)
    dk = product("BHTS,BHTK->BHSK", dscores, q)
    dq = product("BHTS,BHSK->BHTK", dscores, k)
    return (
      _put(dq_BxHxTxK, _cut(dq_BxHxTxK, i, b) + dq, i, b),
      _put(dk_BxHxTxK, _cut(dk_BxHxTxK, j, b) + dk, j, b),
      _put(dv_BxHxTxK, _cut(dv_BxHxTxK, j, b) + dv, j, b),
    )

  inputs = (q_BxHxTxK, k_BxHxTxK, v_BxHxTxK)
  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in inputs)
  gradients = _visit_pairs(plan, q_BxHxTxK.shape[2], segments_BxT, visit, start)
  return (*(g.astype(x.dtype) for g, x in zip(gradients, inputs)), None, None)


_attend.defvjp(_forward, _backward)


def _visit_pairs(
  plan: Plan, length: int, segments_BxT, visit: Callable[[Any, Any], Any], start: Any
) -> Any:
  """The last carry of `visit` (carry, pair) -> carry, over the pairs in which a key may be seen.

  start: the first carry. What the other pairs would add is 0. All devices take as many steps: what
    counts is any row's segments.
  """
  pairs_Px2 = jnp.asarray(plan.pairs(length))
  if segments_BxT is None:
    return jax.lax.scan(lambda carry, pair: (visit(carry, pair), None), start, pairs_Px2)[0]
  # The ids of a block, as bits of their remainders: two of one bit cost a visit, never miss one.
  bits_BxT = jnp.uint32(1) << (segments_BxT % 32).astype(jnp.uint32)
  bits_BxN = jnp.bitwise_or.reduce(bits_BxT.reshape(-1, length // plan.block, plan.block), axis=-1)
  shared_NxN = (bits_BxN[:, :, None] & bits_BxN[:, None, :] != 0).any(0)
  needed_P = shared_NxN[pairs_Px2[:, 0], pairs_Px2[:, 1]]
  pairs_Px2 = pairs_Px2[jnp.argsort(~needed_P, stable=True)]
  return jax.lax.fori_loop(0, needed_P.sum(), lambda p, carry: visit(carry, pairs_Px2[p]), start)


def _scores(plan: Plan, q_BxHxbxK, k_BxHxbxK, segments_BxT, i, j) -> jax.Array:
  """Masked scores of one pair of blocks, float32 B x H x b x b."""
  b = plan.block
  scores = jnp.einsum("BHTK,BHSK->BHTS", q_BxHxbxK, k_BxHxbxK, preferred_element_type=jnp.float32)
  distance_bxb = (i - j) * b + jnp.arange(b)[:, None] - jnp.arange(b)[None, :]
  visible = (distance_bxb >= 0)[None, None]
  if plan.window is not None:
    visible &= (distance_bxb < plan.window)[None, None]
  if segments_BxT is not None:
    query, key = (jax.lax.dynamic_slice_in_dim(segments_BxT, n * b, b, axis=1) for n in (i, j))
    visible = visible & (query[:, None, :, None] == key[:, None, None, :])
  return jnp.where(visible, scores * plan.scale, MASKED)


def _kept(plan: Plan, key, i, j, shape) -> Any:
  """Dropout's factors of one pair's probabilities: the same forward and backward."""
  if not plan.dropout_rate:
    return 1.0
  key = jax.random.fold_in(jax.random.fold_in(key, i), j)
  return Dropout(plan.dropout_rate, key)(jnp.ones(shape, jnp.float32))


def _heads_first(x_BxTxHxK: jax.Array, padding: int) -> jax.Array:
  return jnp.pad(x_BxTxHxK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))


def _cut(x_BxHxT: jax.Array, i: jax.Array, b: int) -> jax.Array:
  """Block i, of b positions, of B x H x T x …"""
  return jax.lax.dynamic_slice_in_dim(x_BxHxT, i * b, b, axis=2)


def _put(x_BxHxT: jax.Array, block: jax.Array, i: jax.Array, b: int) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x_BxHxT, block, i * b, axis=2)
