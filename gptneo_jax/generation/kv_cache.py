"""Keys and values of the tokens so far, in buffers made once.

A global layer keeps every column of the batch; a local layer a ring of the window and a few more
slots, in which column c has slot c mod R. So a GPT-Neo of 2048 positions needs little more than
half of what keeping everything takes.

Columns are the places of a batch whose rows end together: shorter rows begin later, at column
start_B[b], and what stands before is padding that no row sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.config import ModelConfig
from gptneo_jax.sharding import constrain

# Up to so many tokens of a local layer may be written at once and taken back again, by moving the
# next column back: they lie in slots of columns that have left the window already.
SPARE_SLOTS = 16


class LayerCache(NamedTuple):
  """Keys and values of one layer, each B x H x S x K, or H x S x K for a batch of one row.

  S is R, the ring's length, if the layer is local. An axis of 1 would make XLA on CPU copy the
  buffers at every step: it drops the axis for products and keeps it for the loop.
  """

  k: jax.Array
  v: jax.Array


Cache = tuple[LayerCache, ...]


def layer_slots(config: ModelConfig, kind: str, columns: int) -> int:
  """Slots that one layer needs for so many columns."""
  return columns if kind == "global" else min(columns, config.window_size + SPARE_SLOTS)


def make_cache(config: ModelConfig, batch: int, columns: int) -> Cache:
  """An empty cache in the model's compute type, sharded by the table where a mesh is set."""

  def layer(kind: str) -> LayerCache:
    S = layer_slots(config, kind, columns)
    shape = (config.num_heads, S, config.head_dim)
    shape = shape if batch == 1 else (batch, *shape)
    # Two arrays, not one twice: each is updated in place.
    return LayerCache(*(_laid_out(jnp.zeros(shape, config.dtype)) for _ in range(2)))

  return tuple(layer(kind) for kind in config.attention_layers)


def cache_bytes(config: ModelConfig, batch: int, columns: int) -> int:
  """Bytes of `make_cache`'s arrays."""
  slots = sum(layer_slots(config, kind, columns) for kind in config.attention_layers)
  return 2 * batch * slots * config.hidden_size * jnp.dtype(config.dtype).itemsize


def _laid_out(x_HxSxK: jax.Array) -> jax.Array:
  batch = (axes.BATCH,) if x_HxSxK.ndim == 4 else ()
  return constrain(x_HxSxK, *batch, axes.ACT_HEADS, None, None)


def ring_columns(R: int, last: jax.Array) -> jax.Array:
  """The column that each slot of a ring holds when `last` was written last, int32 R; < 0: none."""
  return last - (last - jnp.arange(R)) % R


def write(
  cache: LayerCache,
  k_HxTxK: jax.Array,
  v_HxTxK: jax.Array,
  column: jax.Array,
  count: jax.Array,
  *,
  ring: bool,
) -> LayerCache:
  """The cache with tokens in columns `column` on; of T given, the first `count` are kept.

  A whole (not ring) cache may be written T columns: what is past `count` is written over later, and
  seen by nobody until then. A ring must not take them, for it has no room to spare. Keys and values
  have a batch axis in front where the cache has one.
  """
  T, S = k_HxTxK.shape[-2], cache.k.shape[-2]

  def place(old_HxSxK: jax.Array, new_HxTxK: jax.Array) -> jax.Array:
    new_HxTxK = new_HxTxK.astype(old_HxSxK.dtype)
    if T == 1 or not ring:
      slot = column % S if ring else column
      return jax.lax.dynamic_update_slice_in_dim(old_HxSxK, new_HxTxK, slot, axis=-2)
    column_S = ring_columns(S, column + count - 1)
    taken_HxSxK = jnp.take(new_HxTxK, jnp.clip(column_S - column, 0, T - 1), axis=-2)
    return jnp.where((column_S >= column)[:, None], taken_HxSxK, old_HxSxK)

  return LayerCache(_laid_out(place(cache.k, k_HxTxK)), _laid_out(place(cache.v, v_HxTxK)))


def repeat(cache: Cache, times: int) -> Cache:
  """Each row `times` over, one after another: a prompt is read once, and continued several ways."""
  batched = lambda x: x if x.ndim == 4 else x[None]  # noqa: E731
  return jax.tree.map(lambda x: _laid_out(jnp.repeat(batched(x), times, axis=0)), cache)


def reorder(cache: Cache, row_B: jax.Array) -> Cache:
  """Row b becomes what row_B[b] was."""
  return jax.tree.map(lambda x: _laid_out(jnp.take(x, row_B, axis=0)), cache)


def capacity(columns: int, limit: int) -> int:
  """The buffer's length for so many columns: one of few, so that new lengths rarely recompile.

  64, 128, and from there on steps of 3/2 and 4/3: 192, 256, 384, 512, …; at most `limit`, the
  model's positions, rounded up to 64.
  """
  size = 64
  while size < columns:
    power_of_two = size & (size - 1) == 0
    size = 128 if size == 64 else size * 3 // 2 if power_of_two else size * 4 // 3
  return min(size, math.ceil(limit / 64) * 64)
