"""Slots: rows that are decoded together, each a request with a length and options of its own.

One program runs the last token of every slot through the model, each at its own column; then one
program for each set of processors in use chooses the next ids. All shapes are fixed but for the
columns of the buffers, which follow the longest row in few sizes: nothing is compiled for a new
request. `generation/continuous.py` decides what is run.

Letters of this module: B slots · P columns of ids, the model's positions · S columns of the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.axes import round_up
from gptneo_jax.config import ModelConfig
from gptneo_jax.generation import decode, kv_cache, sampling
from gptneo_jax.generation.cached_forward import forward_with_cache, unembed
from gptneo_jax.generation.kv_cache import KVCache, LayerCache
from gptneo_jax.generation.sampling import History, Processor
from gptneo_jax.generation.token_logprobs import TokenLogprobs, token_logprobs

_LEAST_COLUMNS = 256
_CHOOSERS = 64  # programs that choose ids: clients may come with ever other processors
_SPARE_COLUMNS = decode.CHUNKS[-1]  # what the last chunk of a prompt may be padded by


class Choice(NamedTuple):
  """How the slots that are marked choose their next ids, all by the same processors.

  values, keys_BxN (key data, uint32): an entry for each slot; those of others mean nothing.
  """

  processors: tuple[Processor, ...]
  sample: bool
  member_B: np.ndarray
  keys_BxN: np.ndarray
  values: dict[str, tuple]


class Chosen(NamedTuple):
  """The new id of each slot, int32, and why it means nothing (decode.BAD_LOGITS, …; 0: it does)."""

  token_B: jax.Array
  fault_B: jax.Array


class Slots:
  """The device's part: buffers of ids, keys and values, and the programs that change them.

  A prompt is read apart, into a cache of one row (`decode.prefill_chunk`): in place in the slots'
  own it would copy all of them, on CPU. Calls do not wait for the device. The caller sets the mesh
  and the precision of products.

  count, columns: the sizes of the buffers, one pair of `sizes`, which `arrange` changes.
  """

  def __init__(self, config: ModelConfig, unstacked_params: Any, most: int):
    self._config, self._params = config, unstacked_params
    positions = config.max_position_embeddings
    self._counts = sorted({slot_count(n, most) for n in range(most + 1)})
    self._sizes = sorted({slot_columns(n, positions) for n in range(positions + 1)})
    self.sizes = [(count, columns) for columns in self._sizes for count in self._counts]
    self.count, self.columns = self.sizes[0]
    self._cache = list(decode.empty_cache(config, self.count, self.columns))
    self._ids_BxP = jnp.zeros((self.count, positions), jnp.int32)

  def arrange(self, slots: Sequence[int], count: int, columns: int) -> None:
    """Makes the buffers `count` slots of `columns` columns; slot i is now what slots[i] was.

    None of these may have filled a column that is dropped. Goes from size to size, so that few
    programs do it.
    """
    while (self.count, self.columns) != (count, columns):
      if self.count != count:
        self._change(slots, _next(self._counts, self.count, count), self.columns)
      else:
        self._change(slots, self.count, _next(self._sizes, self.columns, columns))
      slots = range(len(slots))

  def _change(self, slots: Sequence[int], count: int, columns: int) -> None:
    slot_B = np.zeros(count, np.int32)
    slot_B[: len(slots)] = slots
    arranged = self._layers(self._cache, slot_B, columns)
    for i, layer in enumerate(arranged):  # one after another, so that little exists twice
      self._cache[i] = layer
    self._ids_BxP = _taken(self._ids_BxP, slot_B)
    self.count, self.columns = count, columns

  def _layers(
    self, cache: Sequence[LayerCache], slots: Sequence[int] | np.ndarray, columns: int
  ) -> Iterator[LayerCache]:
    """The layers of a cache of these slots with so many columns."""
    slot_B = np.asarray(slots, np.int32)
    for layer, kind in zip(tuple(cache), self._config.attention_layers):
      S = kv_cache.layer_places(self._config, kind, columns)
      yield LayerCache(*(_arranged(x, slot_B, S) for x in layer))

  def empty_row(self, columns: int) -> KVCache:
    """A cache of one row for a prompt of so many columns."""
    size = row_columns(columns, self._config.max_position_embeddings)
    return decode.empty_cache(self._config, 1, size)

  def row_like(self, kept: KVCache, columns: int) -> KVCache:
    """A copy of a cache of one row for a prompt of so many columns, which begins with it."""
    size = row_columns(columns, self._config.max_position_embeddings)
    return tuple(self._layers(kept, [0], size))

  def read(self, row: KVCache, ids_1xT: np.ndarray, column: int, count: int) -> KVCache:
    """The cache of one row with `count` more tokens, from `column` on."""
    return decode.prefill_chunk(
      self._config, self._params, row, ids_1xT, np.int32(column), np.int32(count),
      np.zeros(1, np.int32),
    )  # fmt: skip

  def read_and_score(
    self, row: KVCache, ids_1xT: np.ndarray, next_T: np.ndarray, column: int, count: int
  ) -> tuple[KVCache, TokenLogprobs]:
    """As `read`, and how the ids that follow each of these are predicted."""
    return _read_and_score(
      self._config, self._params, row, ids_1xT, next_T, np.int32(column), np.int32(count)
    )

  def put(self, slot: int, ids: Sequence[int], row: KVCache) -> None:
    """Gives a slot a prompt: its ids, and the cache of one row that holds all but the last."""
    ids_P = np.zeros(self._ids_BxP.shape[1], np.int32)
    ids_P[: len(ids)] = ids
    cache, self._ids_BxP = _put(tuple(self._cache), self._ids_BxP, np.int32(slot), row, ids_P)
    self._cache = list(cache)

  def row_of(self, slot: int, columns: int) -> KVCache:
    """A copy of a slot's cache, which has filled so many columns, as of one row."""
    size = row_columns(columns, self._config.max_position_embeddings)
    return tuple(self._layers(self._cache, [slot], size))

  def step(
    self, column_B: np.ndarray, width_B: np.ndarray, choices: Sequence[Choice], logprobs: bool
  ) -> tuple[Chosen, TokenLogprobs | None]:
    """Runs the id in column column_B of every slot, and chooses the next for those in `choices`.

    width_B: columns of the prompts. Both mean nothing for the other slots. logprobs: whether they
    are returned as well.
    """
    logits_BxV, cache = _forward(
      self._config, self._params, tuple(self._cache), self._ids_BxP, column_B
    )
    self._cache = list(cache)
    chosen = Chosen(jnp.zeros(self.count, jnp.int32), jnp.zeros(self.count, jnp.int32))
    for processors, sample, *rows in choices:
      choose = _chooser(processors, sample, self.count, _shapes(rows))
      self._ids_BxP, chosen = choose(self._ids_BxP, chosen, logits_BxV, column_B, width_B, *rows)
    return chosen, _token_logprobs(logits_BxV, chosen.token_B) if logprobs else None

  def compile_neighbours(self) -> None:
    """Compiles what `arrange` runs to get from the present sizes to the next ones."""
    config, S = self._config, self.columns
    beside = lambda sizes, size: [n for n in sizes if abs(sizes.index(n) - sizes.index(size)) == 1]
    changed = [(count, S) for count in beside(self._counts, self.count)]
    changed += [(self.count, columns) for columns in beside(self._sizes, S)]
    layers = dict(zip(config.attention_layers, self._cache))  # one of each kind
    for count, columns in changed:
      slot_B = np.zeros(count, np.int32)
      for kind, layer in layers.items():
        _arranged(layer.keys, slot_B, kv_cache.layer_places(config, kind, columns))
      _taken(self._ids_BxP, slot_B)


def _next(sizes: Sequence[int], size: int, wanted: int) -> int:
  """The neighbour of a size on the way to the one that is wanted."""
  return sizes[sizes.index(size) + (1 if wanted > size else -1)]


def slot_count(rows: int, most: int) -> int:
  """How many slots there are to be for so many rows: one of a few numbers, at most `most`.

  1, 4, 8, 16, 32, …: on a CPU each row more than one makes a step longer by a fifth of it, so eight
  rows are not to take the step of sixteen.
  """
  count = 1 if rows <= 1 else 4
  while count < rows:
    count *= 2
  return min(count, most)


def slot_columns(columns: int, positions: int) -> int:
  """The columns of the slots' buffers that are to hold `columns`: one of a few sizes.

  256, 384, 512, 768, …; the last has room for the padding of a prompt's last chunk.
  """
  size = kv_cache.bucketed_length(max(columns, _LEAST_COLUMNS), positions)
  return size if size < positions else round_up(positions, _SPARE_COLUMNS) + _SPARE_COLUMNS


def row_columns(columns: int, positions: int) -> int:
  """The columns of the buffer in which a prompt is read: of every other size."""
  size = _LEAST_COLUMNS
  while size < columns:
    size *= 2
  return slot_columns(size, positions)


def bytes_of_slot(config: ModelConfig, columns: int) -> int:
  """Bytes of keys and values that one slot of so many columns holds."""
  size = np.dtype(config.dtype).itemsize
  places = sum(kv_cache.layer_places(config, kind, columns) for kind in config.attention_layers)
  return 2 * places * config.num_heads * config.head_dim * size


# --- compiled -------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="columns")
def _arranged(stored: jax.Array, slot_B: jax.Array, columns: int) -> jax.Array:
  """Keys or values of other slots, with more columns, or fewer where none fills the dropped ones.

  A ring that grows has not gone round yet: below its length column c has slot c in either.
  """
  x_BxHxSxK = kv_cache.batched(stored)[slot_B][:, :, :columns]
  more = columns - x_BxHxSxK.shape[2]
  return kv_cache.stored(jnp.pad(x_BxHxSxK, ((0, 0), (0, 0), (0, more), (0, 0))))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="row")
def _read_and_score(config, unstacked_params, row, ids_1xT, next_T, column, count):
  no_padding_1 = jnp.zeros(1, jnp.int32)
  hidden_Dx1xT, row = forward_with_cache(
    config, unstacked_params, row, ids_1xT, column, count, no_padding_1
  )
  logits_TxV = unembed(config, unstacked_params, hidden_Dx1xT[:, 0])
  return row, token_logprobs(logits_TxV, next_T)


_token_logprobs = jax.jit(token_logprobs)


@jax.jit
def _taken(ids_BxP: jax.Array, slot_B: jax.Array) -> jax.Array:
  return ids_BxP[slot_B]


@functools.partial(jax.jit, donate_argnames=("cache", "ids_BxP"))
def _put(cache: KVCache, ids_BxP: jax.Array, slot: jax.Array, row: KVCache, ids_P: jax.Array):
  """The cache and the ids with those of one row in a slot.

  Columns that the row has and the slots have not are empty.
  """

  def put(old: jax.Array, new_HxSxK: jax.Array) -> jax.Array:
    old_BxHxSxK = kv_cache.batched(old)
    new_1xHxSxK = new_HxSxK[None, :, : old_BxHxSxK.shape[2]]
    start = (slot, *[jnp.int32(0)] * 3)
    return kv_cache.stored(jax.lax.dynamic_update_slice(old_BxHxSxK, new_1xHxSxK, start))

  return jax.tree.map(put, cache, row), ids_BxP.at[slot].set(ids_P)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _forward(config, unstacked_params, cache, ids_BxP, column_B):
  """Logits B x V after the id in each slot's column, and the cache with it."""

  def row(row_cache: KVCache, token: jax.Array, column: jax.Array):
    one, no_padding_1 = jnp.int32(1), jnp.zeros(1, jnp.int32)
    hidden_Dx1x1, row_cache = forward_with_cache(
      config, unstacked_params, row_cache, token[None, None], column, one, no_padding_1
    )
    return hidden_Dx1x1[:, 0, 0], row_cache

  token_B = jnp.take_along_axis(ids_BxP, column_B[:, None], axis=1)[:, 0]
  if len(token_B) == 1:
    hidden_D, cache = row(cache, token_B[0], column_B[0])
    hidden_BxD = hidden_D[None]
  else:
    hidden_BxD, cache = jax.vmap(row)(cache, token_B, column_B)
  return unembed(config, unstacked_params, hidden_BxD.T), cache


def _shapes(rows: list[Any]) -> tuple[Any, ...]:
  leaves, structure = jax.tree.flatten(rows)
  return structure, *map(np.shape, leaves)


@functools.lru_cache(maxsize=_CHOOSERS)
def _chooser(processors: tuple[Processor, ...], sample: bool, count: int, shapes: tuple[Any, ...]):
  """A program of its own for each, so that there are never more than so many."""
  del count, shapes
  return jax.jit(functools.partial(_choose, processors, sample), donate_argnames="ids_BxP")


def _choose(
  processors, sample, ids_BxP, chosen: Chosen, logits_BxV, column_B, width_B, member_B, keys_BxN,
  values,
):  # fmt: skip
  """Chooses the next ids of the members by the same steps as `decode._step`."""

  def row(ids_P, logits_V, column, width, key_N, values):
    end = column + 1
    history = History(ids_P[None], jnp.zeros(1, jnp.int32), end, width)
    logits_1xV = logits_V[None]
    scores_1xV = sampling.process_logits(processors, values, history, logits_1xV)
    bad = jnp.where(jnp.isfinite(scores_1xV.max()), 0, decode.BAD_SCORES)
    bad = jnp.where(decode.not_finite(processors, logits_1xV)[0], decode.BAD_LOGITS, bad)
    key = jax.random.fold_in(jax.random.wrap_key_data(key_N), end - width)
    return sampling.sample_token(key[None], scores_1xV, sample)[0], bad

  token_B, bad_B = jax.vmap(row)(ids_BxP, logits_BxV, column_B, width_B, keys_BxN, values)
  token_B = jnp.where(member_B, token_B, chosen.token_B)
  # A token after the last column is nowhere: the row is at its end.
  column_B = jnp.where(member_B, column_B + 1, ids_BxP.shape[1])
  ids_BxP = ids_BxP.at[jnp.arange(len(ids_BxP)), column_B].set(token_B, mode="drop")
  return ids_BxP, Chosen(token_B, jnp.where(member_B, bad_B, chosen.fault_B))
