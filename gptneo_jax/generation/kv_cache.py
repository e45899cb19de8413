"""Keys and values of the tokens so far, in buffers that are allocated once.

A global layer stores every column of the batch. A local layer is a ring buffer of its window and a
few more places, in which column c has place c mod the ring's length. So a GPT-Neo of 2048 positions
needs little more than half of the memory that storing everything takes.

A column is a place along the length of the batch. Rows end together: shorter ones are padded on the
left, row b by left_pad_B[b] columns, which no token of the row attends to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.config import ModelConfig
from gptneo_jax.sharding import constrain

# Draft tokens that a local layer can take back at most: written into places of columns that have
# left the window already, they are undone by moving the next column back.
SPECULATION_PLACES = 16


class LayerCache(NamedTuple):
  """Keys and values of one layer as they are stored; `view` gives them as B x H x S x K.

  S is the number of places. A batch of one row is stored without its axis, as H x S x K: of an axis
  of 1, which the loop keeps and the products drop, XLA on CPU copies the buffers at every step.
  """

  keys: jax.Array
  values: jax.Array


KVCache = tuple[LayerCache, ...]


def layer_places(config: ModelConfig, kind: str, length: int) -> int:
  """Slots that one layer, 'global' or 'local', needs for `length` columns."""
  return length if kind == "global" else min(length, config.window_size + SPECULATION_PLACES)


def make_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
  """An empty cache of `length` columns in the model's compute type, sharded over a mesh if set."""

  def empty(kind: str) -> jax.Array:
    S = layer_places(config, kind, length)
    return stored(jnp.zeros((batch, config.num_heads, S, config.head_dim), config.dtype))

  # Two arrays each, not one twice: each is updated in place.
  return tuple(LayerCache(keys=empty(kind), values=empty(kind)) for kind in config.attention_layers)


def view(cache: LayerCache) -> tuple[jax.Array, jax.Array]:
  """Keys and values of one layer, each B x H x S x K."""
  return batched(cache.keys), batched(cache.values)


def stored(x_BxHxSxK: jax.Array) -> jax.Array:
  """Keys or values of a layer as a LayerCache has them."""
  x = x_BxHxSxK[0] if len(x_BxHxSxK) == 1 else x_BxHxSxK
  return constrain(x, *(axes.BATCH, axes.ACT_HEADS, None, None)[-x.ndim :])


def batched(x: jax.Array) -> jax.Array:
  """Stored keys or values of a layer, B x H x S x K."""
  return x if x.ndim == 4 else x[None]


def ring_columns(places: int, last: jax.Array) -> jax.Array:
  """The column in each place of a ring after column `last` is written, int32; below 0: none."""
  return last - (last - jnp.arange(places)) % places


def write(
  cache: LayerCache,
  k_BxHxTxK: jax.Array,
  v_BxHxTxK: jax.Array,
  column: jax.Array,
  count: jax.Array,
  *,
  ring: bool,
) -> LayerCache:
  """Stores T tokens in the columns from `column` on, of which the first `count` are real.

  The buffer of a global layer may take all T: those after `count` are overwritten later, and
  attended to by no token until then. A ring takes only the real ones, as it has no places to spare.
  """

  def updated(old: jax.Array, new_BxHxTxK: jax.Array) -> jax.Array:
    new = (new_BxHxTxK[0] if old.ndim == 3 else new_BxHxTxK).astype(old.dtype)
    S, T = old.shape[-2], new.shape[-2]
    if T == 1 or not ring:
      place = column % S if ring else column
      written = jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=-2)
    else:
      column_S = ring_columns(S, column + count - 1)
      taken = jnp.take(new, jnp.clip(column_S - column, 0, T - 1), axis=-2)
      is_new_Sx1 = (column_S >= column)[:, None]
      written = jnp.where(jnp.broadcast_to(is_new_Sx1, old.shape), taken, old)
    return stored(batched(written))

  new_cache = LayerCache(
    keys=updated(cache.keys, k_BxHxTxK), values=updated(cache.values, v_BxHxTxK)
  )
  # One array, read where it is: XLA on CPU might otherwise write it twice, once for the loop to
  # carry and once for the product.
  return jax.lax.optimization_barrier(new_cache)


def repeat(cache: KVCache, times: int) -> KVCache:
  """Each row `times` over, one after another: one prompt, continued several ways."""
  return jax.tree.map(lambda x: stored(jnp.repeat(batched(x), times, axis=0)), cache)


def reorder(cache: KVCache, row_B: jax.Array) -> KVCache:
  """Row b becomes a copy of row row_B[b]."""
  return jax.tree.map(lambda x: stored(jnp.take(batched(x), row_B, axis=0)), cache)


def bucketed_length(length: int, limit: int) -> int:
  """The smallest of a few buffer lengths with room for `length`: new lengths rarely recompile.

  64, 128, then alternating steps of 3/2 and 4/3: 192, 256, 384, 512, …; at most `limit`, the
  model's positions, rounded up to a multiple of 64.
  """
  size = 64
  while size < length:
    power_of_two = size & (size - 1) == 0
    size = 128 if size == 64 else size * 3 // 2 if power_of_two else size * 4 // 3
  return min(size, math.ceil(limit / 64) * 64)
