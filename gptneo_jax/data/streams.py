"""Virtual streams: shuffled documents of each source, mixed, cut into rows of tokens.

The order of a stream follows from the config, the seed and its own number, and from nothing else.
Its state is a few integers: the block of documents in hand is read again after a restart.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from gptneo_jax.data.documents import DataError
from gptneo_jax.data.sources import Component
from gptneo_jax.data.tokenizer import DocumentEncoder

# Documents shuffled together hold no more than this, so that long ones do not fill the memory.
# The order of the data depends on it: another value continues no run.
SHUFFLE_CHARACTERS = 1 << 25
# Documents encoded in one call; a call is worth some 20 ms of a core.
_PIECE_DOCUMENTS = 64
_PIECE_CHARACTERS = 1 << 16
_PIECES_AHEAD = 16  # of all streams together, so that cores and reading need not wait


def permutation(size: int, *key: int) -> np.ndarray:
  """Permutation of range(size) that depends on the key alone.

  Sorts raw bits, whose stream NumPy guarantees; `Generator.permutation` may change with a release
  and a resumed run would then silently read other documents.
  """
  bits = np.random.PCG64(np.random.SeedSequence([part % 2**64 for part in key]))
  return np.argsort(bits.random_raw(size), kind="stable")


@dataclasses.dataclass(frozen=True)
class _Piece:
  """Documents that are encoded together: from `index` on in the block that begins at `start`.

  epochs: passes over the data by the block's beginning, and what each of its documents adds.
  """

  start: dict[str, int]
  index: int
  epochs: tuple[float, float]
  characters: int
  ids: Future[list[np.ndarray]]


def _piece_size(block: list[str], index: int) -> int:
  """How many documents of the block, from `index` on, make a piece."""
  size = 0
  for count, text in enumerate(block[index : index + _PIECE_DOCUMENTS], start=1):
    size += len(text)
    if size >= _PIECE_CHARACTERS:
      return count
  return min(_PIECE_DOCUMENTS, len(block) - index)


class DocumentStream:
  """Documents of one source for one virtual stream, without end.

  Of n shards each of the S streams owns n // S whole; the records of the n % S left over are
  dealt to all streams in turn, so that no document weighs more than another. Each epoch reads the
  shards in a new order; within it, blocks of `window` documents, or of fewer that hold
  SHUFFLE_CHARACTERS, are permuted. A block ends with the epoch.
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
    self._source, self._keep, self._encoder = component.source, component.keep, encoder
    self._stream, self._num_streams = stream, num_streams
    self._window, self._key = window, (*key, stream)
    number = len(self._source.shards)
    self._whole = number // num_streams * num_streams
    self._shards = [*range(stream, self._whole, num_streams), *range(self._whole, number)]
    self._pieces_ahead = max(2, -(-_PIECES_AHEAD // num_streams))
    self._ahead: deque[_Piece] = deque()
    start = {"epoch": 0, "block": 0, "shard": 0, "record": 0, "offset": 0}
    self.set_state({**start, "index": 0, "epochs": 0.0})

  def get_state(self) -> dict[str, Any]:
    """Where the block in hand begins (epoch, block, shard, record, byte offset), `index`, how many
    of its documents were taken, and `epochs`, passes over the data so far."""
    return {**self._start, "index": self._index, "epochs": self.epochs}

  def set_state(self, state: Mapping[str, Any]) -> None:
    for piece in self._ahead:
      piece.ids.cancel()
    self._start = {
      name: int(state[name]) for name in ("epoch", "block", "shard", "record", "offset")
    }
    self._index, self.epochs = int(state["index"]), float(state["epochs"])
    self.epochs_a_document = 0.0
    self._encoded: deque[np.ndarray] = deque()  # what is left of the piece in hand
    self._ahead = deque()
    self._pieces = self._guarded_pieces(self._start, self._index)

  def next(self) -> np.ndarray:
    """Tokens of the next document that has any, int32, the end of text last."""
    epoch = self._start["epoch"]
    while self._start["epoch"] <= epoch + 1:
      if not self._encoded:
        self._take_piece()
      self._index += 1
      self.epochs = self._block_epochs + self._index * self.epochs_a_document
      ids = self._encoded.popleft()
      if len(ids) > 1:
        return ids
    raise DataError(f"the tokenizer has no token for any text of {self._source.shards[0]}")

  def _take_piece(self) -> None:
    """Waits for the next piece; those that follow it are being encoded meanwhile."""
    # The next one and another, further ones while they are small: long documents need not wait.
    while len(self._ahead) < 2 or (
      len(self._ahead) <= self._pieces_ahead
      and sum(piece.characters for piece in self._ahead) < self._pieces_ahead * _PIECE_CHARACTERS
    ):
      self._ahead.append(next(self._pieces))
    piece = self._ahead.popleft()
    end = np.array([self._encoder.end_of_text], np.int32)
    self._encoded.extend(np.concatenate([ids, end]) for ids in piece.ids.result())
    self._start, self._index = piece.start, piece.index
    self._block_epochs, self.epochs_a_document = piece.epochs

  def _guarded_pieces(self, start: dict[str, int], index: int) -> Iterator["_Piece"]:
    """What fails in reading ahead is raised when its turn comes: all before it is still given."""
    try:
      yield from self._read_pieces(start, index)
    except Exception as error:
      failed: Future[list[np.ndarray]] = Future()
      failed.set_exception(error)
      while True:
        yield _Piece(start, index, (0.0, 0.0), 0, failed)

  def _read_pieces(self, start: dict[str, int], index: int) -> Iterator["_Piece"]:
    """Pieces without end, from document `index` of the block that begins at `start`."""
    reader: Iterator | None = None
    while True:
      if reader is None:
        reader = self._read(start["epoch"], start["shard"], (start["record"], start["offset"]))
      block, full, end = self._read_block(start, reader)
      if index > len(block):
        raise DataError(
          f"stream {self._stream}: the data state counts {index} documents in a block that holds"
          f" {len(block)} now: {self._source.shards[0]} … changed since it was saved"
        )
      following = self._start_after(start, len(block), full, end)
      begin = self._epochs_at(start)
      epochs = begin, (self._epochs_at(following) - begin) / max(len(block), 1)
      while index < len(block):
        count = _piece_size(block, index)
        texts = block[index : index + count]
        size = sum(map(len, texts))
        yield _Piece(start, index, epochs, size, self._encoder.encode_later(texts))
        index += count
      start, index = following, 0
      if start["block"] == 0:
        reader = None

  def _read_block(
    self, start: dict[str, int], reader: Iterator
  ) -> tuple[list[str], bool, tuple[int, tuple[int, int]]]:
    """Texts of a block, permuted; whether it is full (else the epoch ended); (shard, cursor) past
    it."""
    texts, end = [], (start["shard"], (start["record"], start["offset"]))
    size, full = 0, False
    while not full and (following := next(reader, None)) is not None:
      end, document = following
      texts.append(document.text)
      size += len(document.text)
      full = len(texts) == self._window or size >= SHUFFLE_CHARACTERS
    order = permutation(len(texts), *self._key, 1, start["epoch"], start["block"])
    return [texts[number] for number in order], full, end

  def _start_after(
    self, start: dict[str, int], size: int, full: bool, end: tuple[int, tuple[int, int]]
  ) -> dict[str, int]:
    """Where the block after one of `size` documents begins: in the next epoch if it is not full."""
    if full:
      shard, (record, offset) = end
      return {
        "epoch": start["epoch"], "block": start["block"] + 1,
        "shard": shard, "record": record, "offset": offset,
      }  # fmt: skip
    if start["block"] == 0 and not size:
      raise DataError(
        f"stream {self._stream} of {self._num_streams} has no document in"
        f" {self._source.shards[0]}{' …' if len(self._source.shards) > 1 else ''}:"
        " fewer documents than streams? lower data.num_streams"
      )
    return {"epoch": start["epoch"] + 1, "block": 0, "shard": 0, "record": 0, "offset": 0}

  def _epochs_at(self, start: dict[str, int]) -> float:
    """Passes over the data by the beginning of a block; within a packed file they stand still."""
    shard, within = start["shard"], 0.0
    if start["offset"]:
      order = permutation(len(self._shards), *self._key, 0, start["epoch"])
      size = self._source.size(self._shards[order[shard]])
      within = min(start["offset"] / size, 1.0) if size else 0.0
    return start["epoch"] + (shard + within) / len(self._shards)

  def _read(self, epoch: int, first: int, cursor: tuple[int, int]) -> Iterator:
    """Yields ((shard in the epoch's order, cursor), document) to the end of the epoch."""
    order = permutation(len(self._shards), *self._key, 0, epoch)
    for number in range(first, len(order)):
      shard = self._shards[order[number]]
      start = cursor if number == first else (0, 0)
      for read_to, document in self._source.read(shard, start, self._owns(shard)):
        if self._keep(document):
          yield (number, read_to), document

  def _owns(self, shard: int):
    """Says of a record's number in the shard whether it is this stream's."""
    if shard < self._whole:
      return lambda record: True
    # Shifted by the shard, so that shards of one document do not all go to one stream.
    return lambda record: (record + shard) % self._num_streams == self._stream


class RowStream:
  """Rows of tokens of one virtual stream: its sources mixed by weight, cut without a gap."""

  def __init__(self, sources: list[DocumentStream], weights: list[float]):
    self._sources, self._weights = sources, weights
    self._emitted = [0] * len(sources)  # tokens of each source, the document in hand included
    self._current: int | None = None  # source of the document in hand
    self._tokens = np.zeros(0, np.int32)
    self._position = 0  # tokens of the document in hand that are used up

  def fill(self, row: np.ndarray, ends: np.ndarray) -> None:
    """Fills int32 `row` with the next tokens and bool `ends` with True at ends of text."""
    ends[:] = False
    filled = 0
    while filled < len(row):
      if self._current is None:
        self._take()
      count = min(len(row) - filled, len(self._tokens) - self._position)
      row[filled : filled + count] = self._tokens[self._position : self._position + count]
      filled += count
      self._position += count
      if self._position == len(self._tokens):
        ends[filled - 1] = True
        self._current, self._position = None, 0

  def _take(self) -> None:
    """Takes a document of the source that is furthest behind its share of the tokens."""
    behind = [emitted / weight for emitted, weight in zip(self._emitted, self._weights)]
    source = behind.index(min(behind))
    self._tokens = self._sources[source].next()
    self._emitted[source] += len(self._tokens)
    self._current = source

  def get_state(self) -> dict:
    """State of every source, the tokens emitted of each, and the place in the document in hand."""
    sources = [source.get_state() for source in self._sources]
    if self._current is not None:
      in_hand = sources[self._current]
      in_hand["index"] -= 1  # the document in hand is taken again
      left = 1 - self._position / len(self._tokens)
      in_hand["epochs"] -= left * self._sources[self._current].epochs_a_document
    return {
      "sources": sources,
      "emitted": list(self._emitted),
      "current": self._current,
      "position": self._position,
    }

  def set_state(self, state: dict) -> None:
    for source, source_state in zip(self._sources, state["sources"]):
      source.set_state(source_state)
    self._emitted = [int(count) for count in state["emitted"]]
    self._current, self._position = state["current"], int(state["position"])
    if self._current is not None:
      self._tokens = self._sources[self._current].next()


def document_streams(
  components: list[Component],
  encoder: DocumentEncoder,
  *,
  stream: int,
  num_streams: int,
  window: int,
  seed: int,
) -> RowStream:
  """The virtual stream number `stream` over all sources."""
  sources = [
    DocumentStream(
      component,
      encoder,
      stream=stream,
      num_streams=num_streams,
      window=window,
      key=(seed, number),
    )
    for number, component in enumerate(components)
  ]
  return RowStream(sources, [component.weight for component in components])
