"""Documents of a split in a fixed order, and the windows in which they are scored."""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.sources import open_components
from gptneo_jax.data.tokenizer import DocumentEncoder

# Documents encoded in one call.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 1 << 18
_SORTED_BATCHES = 32  # whose windows are sorted together
_MIN_WIDTH = 64
_KEPT_BYTES = 1 << 28


def evaluation_documents(
  config: DataConfig, split: str, limit_documents: int = 0
) -> Iterator[Document]:
  """Documents of 'train', 'validation' or 'test' in source order; at most `limit_documents`, if
  not 0.

  Raises:
    DataError: at once if a source does not exist or nothing is held out for the split; at the
      first document if there is none.
  """
  bad_records = BadRecords(config.on_bad_record)
  components = open_components(config, split, bad_records)
  return _documents(components, config.own_path(split), split, limit_documents, bad_records)


def _documents(components, own_path, split, limit_documents, bad_records):
  documents = itertools.chain.from_iterable(part.documents() for part in components)
  first = next(documents, None)
  if first is None:
    skipped = f" (skipped: {bad_records})" if bad_records.counts else ""
    raise DataError(
      f"{own_path} holds no document{skipped}"
      if own_path
      else f"the {split} split holds no document{skipped}"
      + ("" if split == "train" else f": raise data.{split}_fraction")
    )
  yield from itertools.islice(itertools.chain([first], documents), limit_documents or None)
  bad_records.log_summary()


def mixed_documents(config: DataConfig) -> Iterator[Document]:
  """Training documents once, in source order, the sources of a mixture interleaved by weight.

  For training a tokenizer: any first part has each source's share of the bytes.
  """
  components = open_components(config, "train", BadRecords(config.on_bad_record))
  # (bytes so far / weight, number): the source with the fewest bytes for its weight comes next.
  waiting = [(0.0, number) for number in range(len(components))]
  documents = [component.documents() for component in components]
  while waiting:
    bytes_by_weight, number = heapq.heappop(waiting)
    document = next(documents[number], None)
    if document is not None:
      size = len(document.text.encode())
      heapq.heappush(waiting, (bytes_by_weight + size / components[number].weight, number))
      yield document


@dataclasses.dataclass(frozen=True)
class EvaluationWindow:
  """Up to T tokens: inputs and targets int32 T, weights float32 T (1: scored here)."""

  inputs: np.ndarray
  targets: np.ndarray
  weights: np.ndarray
  document: int  # index
  length: int  # tokens; padding follows


def evaluation_windows(
  documents: Iterable[np.ndarray], end_of_text: int, seq_len: int, stride: int | None = None
) -> Iterator[EvaluationWindow]:
  """Windows of T = `seq_len` inputs that begin `stride` tokens apart; every token is scored once.

  The first input of a document is the end-of-text token; it is not scored, and none follows the
  document. A token is scored in the first window that holds it, where it has the most context: all
  tokens of the first window, the last `stride` of each further one. None is a stride of T, disjoint
  windows: each further one starts with the last target of the one before.

  Args:
    documents: token ids of each, without end of text; one without ids has no window.
    end_of_text: its id.
    seq_len: T.
    stride: 1 to T, or None for T.

  Raises:
    ValueError: at once, for another stride.
  """
  step = seq_len if stride is None else stride
  if not 1 <= step <= seq_len:
    raise ValueError(f"stride is {stride}; it must be 1 to {seq_len}, the inputs of a window")
  return itertools.chain.from_iterable(
    _windows(ids, number, end_of_text, seq_len, step) for number, ids in enumerate(documents)
  )


class EvaluationBatches:
  """Batches of the windows that `evaluation_windows` gives; one pass, so any amount of data fits.

  A batch is a dict: `inputs`, `targets` int32 B x T; `weights` float32 B x T, 1 where a token is
  scored, 0 for padding and for tokens that are only context; `row_document` int32 B, index of the
  row's document, or -1 for a row of padding.

  Attributes (they grow while batches are taken and are complete after the last one):
    subsets: subset of each document.
    bytes_per_document: UTF-8 bytes of each document. Bits per byte of a set of documents is
      their summed negative log-likelihood in nats / (their bytes * ln 2).
    tokens_per_document: scored tokens of each document.
  """

  def __init__(
    self,
    documents: Iterable[Document],
    tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    stride: int | None = None,
    by_length: bool = False,
  ):
    """by_length: sort the windows of every 32 batches, longest first, and make a batch only as wide
    as the power of two that holds its longest (at least 64): short documents cost less."""
    self.subsets: list[str] = []
    self.bytes_per_document: list[int] = []
    self.tokens_per_document: list[int] = []
    encoder = DocumentEncoder(tokenizer)
    ids = self._encoded(documents, encoder)
    windows = evaluation_windows(ids, encoder.end_of_text, seq_len, stride)
    self._batches = _batches(windows, encoder.end_of_text, batch_size, seq_len, by_length)

  def __iter__(self) -> "EvaluationBatches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._batches)

  def _noted(self, documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
      self.subsets.append(document.subset)
      self.bytes_per_document.append(len(document.text.encode()))
      yield document

  def _encoded(
    self, documents: Iterable[Document], encoder: DocumentEncoder
  ) -> Iterator[np.ndarray]:
    for ids in _encode(self._noted(documents), encoder):
      self.tokens_per_document.append(len(ids))
      yield ids


class KeptBatches:
  """EvaluationBatches for many passes: kept in memory unless they are larger than `limit_bytes`.

  Batches are made when they are first asked for, so a pass that stops early makes only its own.
  Larger data is read and encoded again in each pass.
  """

  def __init__(self, make: Callable[[], EvaluationBatches], limit_bytes: int = _KEPT_BYTES):
    self._make, self._limit = make, limit_bytes
    self._batches = make()
    self._kept: list[dict[str, np.ndarray]] | None = []
    self._size = 0

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    if self._kept is None:
      self._batches = self._make()
    yield from map(dict, self._kept or ())
    for batch in self._batches:
      if self._kept is not None:
        self._kept.append(batch)
        self._size += sum(array.nbytes for array in batch.values())
        if self._size > self._limit:
          self._kept = None
      yield dict(batch)

  @property
  def subsets(self) -> list[str]:
    return self._batches.subsets

  @property
  def bytes_per_document(self) -> list[int]:
    return self._batches.bytes_per_document

  @property
  def tokens_per_document(self) -> list[int]:
    return self._batches.tokens_per_document


def _batches(
  windows: Iterator[EvaluationWindow], end_of_text: int, B: int, seq_len: int, by_length: bool
) -> Iterator[dict[str, np.ndarray]]:
  while drawn := list(itertools.islice(windows, B * (_SORTED_BATCHES if by_length else 1))):
    if by_length:
      drawn.sort(key=lambda window: -window.length)
    for first in range(0, len(drawn), B):
      taken = drawn[first : first + B]
      T = _width(max(window.length for window in taken), seq_len) if by_length else seq_len
      batch = {
        "inputs": np.full((B, T), end_of_text, np.int32),
        "targets": np.full((B, T), end_of_text, np.int32),
        "weights": np.zeros((B, T), np.float32),
        "row_document": np.full(B, -1, np.int32),
      }
      for row, window in enumerate(taken):
        for name in ("inputs", "targets", "weights"):
          batch[name][row] = getattr(window, name)[:T]
        batch["row_document"][row] = window.document
      yield batch


def _width(length: int, seq_len: int) -> int:
  """Columns of a batch whose longest window has `length` tokens: a power of two, so that few shapes
  are compiled."""
  return min(max(_MIN_WIDTH, 1 << (length - 1).bit_length()), seq_len)


def _encode(documents: Iterable[Document], encoder: DocumentEncoder) -> Iterator[np.ndarray]:
  """Ids of each document; several documents are encoded at once."""
  group, size = [], 0
  for document in documents:
    group.append(document.text)
    size += len(document.text)
    if len(group) == _GROUP_DOCUMENTS or size >= _GROUP_CHARACTERS:
      yield from encoder.encode(group)
      group, size = [], 0
  yield from encoder.encode(group)


def _windows(
  ids: np.ndarray, number: int, end_of_text: int, seq_len: int, step: int
) -> Iterator[EvaluationWindow]:
  inputs = np.concatenate([np.array([end_of_text], np.int32), ids[:-1]])
  start = scored = 0  # of the document's tokens: where the window starts, how many are scored
  while scored < len(ids):
    count = min(seq_len, len(ids) - start)
    window = EvaluationWindow(
      inputs=np.full(seq_len, end_of_text, np.int32),
      targets=np.full(seq_len, end_of_text, np.int32),
      weights=np.zeros(seq_len, np.float32),
      document=number,
      length=count,
    )
    window.inputs[:count] = inputs[start : start + count]
    window.targets[:count] = ids[start : start + count]
    window.weights[scored - start : count] = 1
    yield window
    scored = start + count
    start += step
