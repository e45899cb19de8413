"""Windows of token shards in a shuffled order that can be entered anywhere.

window  `width` ids of the sequence of all shards, from a multiple of `width` on; fewer than
        `width` ids at its end are in none
run     windows one after another, about a block of a file, read together
order   of an epoch: the runs in a keyed order, then the windows of a last, shorter run
share   of a stream: as many windows of the order, one after another, as any other stream's
        (or one more), so that all streams together read each window once an epoch
group   windows of a share that are shuffled among each other
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gptneo_jax.data.documents import DataError
from gptneo_jax.data.keyed_order import KeyedOrder, permutation
from gptneo_jax.data.shard_manifest import BLOCK
from gptneo_jax.data.token_shards import TokenShards

_GROUP_RUNS = 16
_GROUPS_KEPT = 3  # in a cache: one is read and the next fetched; runs begin and end within blocks


class WindowStream:
  """Windows for one virtual stream, without end; as streams.DocumentStream.

  Its state is the epoch and a number: whatever its size, it is restored at once.
  """

  def __init__(
    self, shards: TokenShards, *, width: int, stream: int, num_streams: int, key: tuple[int, ...]
  ):
    """Raises DataError if there are fewer windows than streams."""
    self._shards, self._width, self._stream, self._key = shards, width, stream, key
    windows = shards.tokens // width
    if windows < num_streams:
      raise DataError(
        f"{shards.folder}: {shards.tokens:,} tokens are {windows} rows of {width}, fewer than the"
        f" {num_streams} streams: lower data.num_streams, or seq_len"
      )
    self._run = max(1, BLOCK // (width * shards.itemsize))
    _check_room(shards, num_streams)
    self._runs = windows // self._run
    self._first, end = (windows * number // num_streams for number in (stream, stream + 1))
    self._count = end - self._first
    self.epochs_per_document = 1 / self._count
    self.set_state({"epoch": 0, "index": 0})

  def get_state(self) -> dict[str, Any]:
    """`epoch`; `index`, how many of its windows were taken; `epochs`, passes so far."""
    return {"epoch": self._epoch, "index": self._index, "epochs": self.epochs}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._epoch, self._index = int(state["epoch"]), int(state["index"])
    if self._epoch < 0 or not 0 <= self._index <= self._count:
      raise ValueError(f"window {self._index} of {self._count} in epoch {self._epoch}")
    self._order: KeyedOrder | None = None
    self._group: tuple[int, np.ndarray] | None = None

  @property
  def epochs(self) -> float:
    return self._epoch + self._index / self._count

  def next_document(self) -> np.ndarray:
    """int32 ids of the next window. Raises DataError for a damaged shard."""
    if self._index == self._count:
      self.set_state({"epoch": self._epoch + 1, "index": 0})
    window = self._window(self._index)
    self._index += 1
    return self._shards.ids(window * self._width, self._width)

  def _window(self, index: int) -> int:
    """The number of the window that is `index` in this stream's epoch."""
    size = _GROUP_RUNS * self._run
    number, place = divmod(index, size)
    if self._group is None or self._group[0] != number:
      count = min(size, self._count - number * size)
      if self._group is None:
        self._fetch_ahead(number)
      self._fetch_ahead(number + 1)
      self._group = number, permutation(count, *self._key, self._stream, 1, self._epoch, number)
    return self._in_order(self._first + number * size + int(self._group[1][place]))

  def _fetch_ahead(self, group: int) -> None:
    """Asks for what a group of this epoch will read, if that is behind a URL."""
    if self._shards.room is None:
      return
    start = self._first + group * _GROUP_RUNS * self._run
    end = min(start + _GROUP_RUNS * self._run, self._first + self._count)
    for place in range(start // self._run * self._run, end, self._run):
      windows = min(self._run, end - place)
      self._shards.ahead(self._in_order(place) * self._width, windows * self._width)

  def _in_order(self, place: int) -> int:
    run, within = divmod(place, self._run)
    if run == self._runs:  # the last, shorter one
      return place
    if self._order is None:
      self._order = KeyedOrder(self._runs, *self._key, 0, self._epoch)
    return self._order[run] * self._run + within


def _check_room(shards: TokenShards, num_streams: int) -> None:
  """Raises DataError if a cache does not hold what the streams read at a time."""
  at_a_time = min(num_streams * _GROUPS_KEPT * _GROUP_RUNS * BLOCK, 2 * shards.bytes)
  if shards.room is not None and shards.room < at_a_time:
    raise DataError(
      f"data.cache_gib {shards.room / 2**30:g} is too little for {num_streams} streams, which would"
      f" fetch the same blocks again and again: {at_a_time / 2**30:.2g} or more"
    )
