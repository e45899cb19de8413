"""Virtual streams: shuffled documents of each source, mixed, cut into rows of tokens.

  epoch     one pass over the stream's shards, each time in a new order
  shard     one file, or one shard of a data set; its records are read in order
  block     documents shuffled together: `window` read one after another, fewer if they are long
  group     documents of a shuffled block that the tokenizer encodes in one call
  document  its tokens and the end of text; of token shards, a window of them (token_windows.py)
  row       T + 1 tokens of the documents of all sources, one after another

The order of a stream depends on the config, the seed and its own number, and on nothing else. Its
state is a few integers: after a restart the current block is read and tokenized again.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax.data.documents import Cursor, DataError, Document, Wanted
from gptneo_jax.data.keyed_order import permutation
from gptneo_jax.data.sources import Component
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.data.token_windows import WindowStream
from gptneo_jax.data.tokenizer import DocumentEncoder

# A block ends with the document that reaches this, so that long ones do not fill the memory. The
# order of the data depends on it: a run cannot be resumed with another value.
BLOCK_CHARACTERS = 1 << 25
# Sizes of a group; encoding one takes some 20 ms of a core.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 1 << 16
_GROUPS_AHEAD = 16  # encoded ahead by all streams together, so that neither cores nor readers wait


class _BlockStart(NamedTuple):
  """Where a block begins; every field counts from 0."""

  epoch: int
  block: int  # of the epoch
  shard: int  # in the epoch's order
  record: int  # records of the shard that come before
  offset: int  # their bytes, in a file that is not compressed; else 0


@dataclasses.dataclass(frozen=True)
class _Group:
  """Documents of one block that are encoded in one call.

  Attributes:
    start: of the block.
    first: place of its first document in the shuffled block.
    epochs_before: passes over the data by the start of the block.
    epochs_per_document: what each document of the block adds to them.
    characters: of all its texts.
    ids: token ids of each document.
  """

  start: _BlockStart
  first: int
  epochs_before: float
  epochs_per_document: float
  characters: int
  ids: Future[list[np.ndarray]]


def _group_size(block: list[str], first: int) -> int:
  """How many documents of the block, from place `first` on, make a group."""
  size = 0
  for count, text in enumerate(block[first : first + _GROUP_DOCUMENTS], start=1):
    size += len(text)
    if size >= _GROUP_CHARACTERS:
      return count
  return min(_GROUP_DOCUMENTS, len(block) - first)


def _count(value: Any) -> int:
  """A whole number of a state, 0 or more. Raises ValueError."""
  if type(value) is not int or value < 0:
    raise ValueError(f"{value!r:.80} is no count")
  return value


class DocumentStream:
  """Documents of one source for one virtual stream, without end.

  Of n shards each of the S streams reads n // S alone; the records of the n % S shards left over
  are dealt to all streams in turn, so that no document weighs more than another. Each epoch reads
  the shards in a new order, and shuffles its documents block by block. The last block of an epoch
  ends with it.
  """

  def __init__(
    self,
    component: Component,
    encoder: DocumentEncoder,
    *,
    stream: int,
    num_streams: int,
    window: int,
    key: tuple[int, ...],
  ):
    assert not isinstance(component.source, TokenShards)
    self._source, self._keep, self._encoder = component.source, component.keep, encoder
    self._stream, self._num_streams = stream, num_streams
    self._window, self._key = window, (*key, stream)
    number = len(self._source.shards)
    self._dealt_from = number // num_streams * num_streams  # shards from here on are dealt to all
    self._shards = [*range(stream, self._dealt_from, num_streams), *range(self._dealt_from, number)]
    self._max_groups_ahead = max(2, -(-_GROUPS_AHEAD // num_streams))
    self._groups_ahead: deque[_Group] = deque()
    self.set_state({**_BlockStart(0, 0, 0, 0, 0)._asdict(), "index": 0, "epochs": 0.0})

  def get_state(self) -> dict[str, Any]:
    """Where the current block begins (epoch, block, shard, record, byte offset), `index`, how many
    of its documents were taken, and `epochs`, passes over the data so far."""
    return {**self._start._asdict(), "index": self._taken, "epochs": self.epochs}

  def set_state(self, state: Mapping[str, Any]) -> None:
    for group in self._groups_ahead:
      group.ids.cancel()
    self._start = _BlockStart(*(_count(state[field]) for field in _BlockStart._fields))
    if self._start.shard > len(self._shards):
      raise ValueError(f"shard {self._start.shard} of {len(self._shards)}")
    self._taken, self.epochs = _count(state["index"]), float(state["epochs"])
    self.epochs_per_document = 0.0
    self._tokens: deque[np.ndarray] = deque()  # of the current group's documents not yet taken
    self._groups_ahead = deque()
    self._groups = self._groups_and_failure(self._start, self._taken)

  def next_document(self) -> np.ndarray:
    """Tokens of the next document that has any, int32, the end of text last."""
    epoch = self._start.epoch
    while self._start.epoch <= epoch + 1:
      if not self._tokens:
        self._take_group()
      self._taken += 1
      self.epochs = self._epochs_before + self._taken * self.epochs_per_document
      tokens = self._tokens.popleft()
      if len(tokens) > 1:
        return tokens
    raise DataError(f"the tokenizer has no token for any text of {self._source.shards[0]}")

  def _take_group(self) -> None:
    """Waits for the next group; those after it are being encoded meanwhile."""
    # The next one and another; more while they are small, since long documents keep cores busy.
    while len(self._groups_ahead) < 2 or (
      len(self._groups_ahead) <= self._max_groups_ahead
      and sum(group.characters for group in self._groups_ahead)
      < self._max_groups_ahead * _GROUP_CHARACTERS
    ):
      self._groups_ahead.append(next(self._groups))
    group = self._groups_ahead.popleft()
    end = np.array([self._encoder.end_of_text], np.int32)
    self._tokens.extend(np.concatenate([ids, end]) for ids in group.ids.result())
    self._start, self._taken = group.start, group.first
    self._epochs_before, self.epochs_per_document = group.epochs_before, group.epochs_per_document

  def _groups_and_failure(self, start: _BlockStart, first: int) -> Iterator[_Group]:
    """Groups without end. An error of reading ahead is raised by the group that it prevented, after
    all documents before it were given."""
    try:
      yield from self._read_groups(start, first)
    except Exception as error:
      failed: Future[list[np.ndarray]] = Future()
      failed.set_exception(error)
      while True:
        yield _Group(start, first, 0.0, 0.0, 0, failed)

  def _read_groups(self, start: _BlockStart, first: int) -> Iterator[_Group]:
    """Groups without end, from place `first` of the block that begins at `start`."""
    reader: Iterator | None = None
    while True:
      if reader is None:
        reader = self._read(start.epoch, start.shard, (start.record, start.offset))
      block, full, end = self._read_block(start, reader)
      if first > len(block):
        raise DataError(
          f"stream {self._stream}: the data state counts {first} documents in a block that holds"
          f" {len(block)} now: {self._source.shards[0]} … changed since it was saved"
        )
      following = self._start_after(start, len(block), full, end)
      before = self._epochs_at(start)
      per_document = (self._epochs_at(following) - before) / max(len(block), 1)
      while first < len(block):
        count = _group_size(block, first)
        texts = block[first : first + count]
        characters = sum(map(len, texts))
        ids = self._encoder.encode_later(texts)
        yield _Group(start, first, before, per_document, characters, ids)
        first += count
      start, first = following, 0
      if start.block == 0:
        reader = None

  def _read_block(
    self, start: _BlockStart, reader: Iterator
  ) -> tuple[list[str], bool, tuple[int, Cursor]]:
    """Texts of a block, shuffled; whether it is full (else the epoch ended); (shard, cursor) past
    it."""
    texts, end = [], (start.shard, (start.record, start.offset))
    size, full = 0, False
    while not full and (following := next(reader, None)) is not None:
      end, document = following
      texts.append(document.text)
      size += len(document.text)
      full = len(texts) == self._window or size >= BLOCK_CHARACTERS
    order = permutation(len(texts), *self._key, 1, start.epoch, start.block)
    return [texts[number] for number in order], full, end

  def _start_after(
    self, start: _BlockStart, size: int, full: bool, end: tuple[int, Cursor]
  ) -> _BlockStart:
    """Where the block after one of `size` documents begins: in the next epoch if it is not full."""
    if full:
      shard, (record, offset) = end
      return _BlockStart(start.epoch, start.block + 1, shard, record, offset)
    if start.block == 0 and not size:
      raise DataError(
        f"stream {self._stream} of {self._num_streams} has no document in"
        f" {self._source.shards[0]}{' …' if len(self._source.shards) > 1 else ''}:"
        " fewer documents than streams? lower data.num_streams"
      )
    return _BlockStart(epoch=start.epoch + 1, block=0, shard=0, record=0, offset=0)

  def _epochs_at(self, start: _BlockStart) -> float:
    """Passes over the data by the start of a block; a compressed file counts when it ends."""
    within = 0.0
    if start.offset:
      order = permutation(len(self._shards), *self._key, 0, start.epoch)
      size = self._source.size(self._shards[order[start.shard]])
      within = min(start.offset / size, 1.0) if size else 0.0
    return start.epoch + (start.shard + within) / len(self._shards)

  def _read(
    self, epoch: int, first: int, cursor: Cursor
  ) -> Iterator[tuple[tuple[int, Cursor], Document]]:
    """Yields ((shard in the epoch's order, cursor past it), document) to the end of the epoch, from
    `cursor` in the shard `first`."""
    order = permutation(len(self._shards), *self._key, 0, epoch)
    for number in range(first, len(order)):
      shard = self._shards[order[number]]
      start = cursor if number == first else (0, 0)
      for past, document in self._source.read(shard, start, self._wanted(shard)):
        if self._keep(document):
          yield (number, past), document

  def _wanted(self, shard: int) -> Wanted:
    """Says of a record's number in the shard whether it is this stream's."""
    if shard < self._dealt_from:
      return lambda record: True
    # Shifted by the shard, so that shards of one document do not all go to one stream.
    return lambda record: (record + shard) % self._num_streams == self._stream


class RowStream:
  """Rows of tokens of one virtual stream: the documents of its sources, mixed by weight.

  A row begins where the one before ended, so documents may span rows and no token is left out.
  """

  def __init__(
    self, sources: list[DocumentStream | WindowStream], weights: list[float], end_of_text: int
  ):
    self._sources, self._weights, self._end_of_text = sources, weights, end_of_text
    self._emitted = [0] * len(sources)  # tokens of each source, the current document included
    self._current: int | None = None  # source of the current document
    self._tokens = np.zeros(0, np.int32)  # of the current document
    self._position = 0  # how many of them are in rows

  def fill(self, row: np.ndarray, ends: np.ndarray) -> None:
    """Fills int32 `row` with the next tokens and bool `ends` with True at ends of text."""
    filled = 0
    while filled < len(row):
      if self._current is None:
        self._take()
      count = min(len(row) - filled, len(self._tokens) - self._position)
      row[filled : filled + count] = self._tokens[self._position : self._position + count]
      filled += count
      self._position += count
      if self._position == len(self._tokens):
        self._current, self._position = None, 0
    np.equal(row, self._end_of_text, out=ends)

  def _take(self) -> None:
    """Takes a document of the source with the fewest tokens emitted for its weight."""
    emitted_by_weight = [emitted / weight for emitted, weight in zip(self._emitted, self._weights)]
    source = emitted_by_weight.index(min(emitted_by_weight))
    self._tokens = self._sources[source].next_document()
    self._emitted[source] += len(self._tokens)
    self._current = source

  def get_state(self) -> dict:
    """State and emitted tokens of every source, and the position in the current document."""
    sources = [source.get_state() for source in self._sources]
    if self._current is not None:
      current = sources[self._current]
      current["index"] -= 1  # a resumed run takes the current document again
      left = 1 - self._position / len(self._tokens)
      current["epochs"] -= left * self._sources[self._current].epochs_per_document
    return {
      "sources": sources,
      "emitted": list(self._emitted),
      "current": self._current,
      "position": self._position,
    }

  def set_state(self, state: dict) -> None:
    for source, source_state in zip(self._sources, state["sources"]):
      source.set_state(source_state)
    self._emitted = [_count(count) for count in state["emitted"]]
    self._current, self._position = state["current"], _count(state["position"])
    if len(state["sources"]) != len(self._sources) or len(self._emitted) != len(self._sources):
      raise ValueError("it is of other sources")
    if self._current is not None:
      self._tokens = self._sources[_count(self._current)].next_document()
      if self._position > len(self._tokens):
        raise ValueError(f"token {self._position} of a document of {len(self._tokens)}")


def row_stream(
  components: list[Component],
  encoder: DocumentEncoder,
  *,
  stream: int,
  num_streams: int,
  window: int,
  width: int,
  seed: int,
) -> RowStream:
  """Virtual stream number `stream` over all sources.

  window: documents that are shuffled together. width: tokens of a row.
  """

  def opened(number: int, component: Component) -> DocumentStream | WindowStream:
    which = {"stream": stream, "num_streams": num_streams, "key": (seed, number)}
    if isinstance(component.source, TokenShards):
      return WindowStream(component.source, width=width, **which)
    return DocumentStream(component, encoder, window=window, **which)

  sources = [opened(number, component) for number, component in enumerate(components)]
  return RowStream(sources, [component.weight for component in components], encoder.end_of_text)
