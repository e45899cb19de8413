"""What is held out of a training source: by the hash of a text, or the end of the only one."""

import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from gptneo_jax.data.documents import Document

_LAST_HASH = 2**48
_LEAST_PART = 32  # characters; shorter documents are not cut for the streams' sake


class Shares(NamedTuple):
  """Of the training documents, held out. Test takes the smallest hashes, validation the next."""

  validation: float
  test: float

  def bounds(self, split: str) -> tuple[float, float]:
    """The hashes of a split: from the first on, and below the second."""
    low, high = self.test, self.test + self.validation
    return {"test": (0.0, low), "validation": (low, high), "train": (high, 1.0)}[split]


def position(text: str) -> float:
  """Where a text lies in [0, 1), by its hash alone: equal texts lie on one side."""
  digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
  return int.from_bytes(digest, "big") / _LAST_HASH


def enlarged(shares: Shares, documents: Iterable[Document]) -> Shares:
  """The shares, validation as large as it must be to hold one of the documents.

  They are read as far as the first that it holds. Where it holds none of them all, it takes the
  smallest hashes that are not the test's: as many as its share comes to, and one at least.
  """
  low, high = shares.bounds("validation")
  others = []
  for document in documents:
    at = position(document.text)
    if low <= at < high:
      return shares
    others.append(at)
  count = max(1, round(shares.validation * len(others)))
  smallest = heapq.nsmallest(count, {at for at in others if at >= high})
  if not smallest:
    return shares
  return Shares(smallest[-1] + 0.5 / _LAST_HASH - low, shares.test)


class Listed:
  """A source of documents in memory, in one shard."""

  def __init__(self, documents: Sequence[Document]):
    self.documents = documents
    self.shards = [document.location.rpartition(":")[0] for document in documents[:1]]

  def size(self, shard: int) -> int:
    """0: these are no bytes of a file."""
    return 0

  def read(
    self, shard: int, start: tuple[int, int], mine: Callable[[int], bool]
  ) -> Iterator[tuple[tuple[int, int], Document]]:
    """As JsonLines.read."""
    for number in range(start[0], len(self.documents)):
      if mine(number):
        yield (number + 1, 0), self.documents[number]


def part_of(document: Document, shares: Shares, split: str) -> list[Document]:
  """What of the only document of a source is in a split: its end is held out, test before
  validation. Cut at a line's start, or a word's where the line is too long."""
  text = document.text
  end = len(text)
  test_end = end
  if shares.validation:
    test_end = _cut(text, end // 2, min(int(end * (1 - shares.validation)), end - 1))
  train_end = test_end
  if shares.test:
    at = int(end * (1 - shares.validation - shares.test))
    train_end = min(_cut(text, at // 2, at), test_end)
  start, end = {
    "train": (0, train_end), "test": (train_end, test_end), "validation": (test_end, end)
  }[split]  # fmt: skip
  return _pieces(document, [start, end])


def in_parts(documents: Sequence[Document], num_parts: int) -> list[Document]:
  """The documents, each cut at lines or words in `num_parts` parts of about the same size.

  A document too short for so many is cut in fewer.
  """
  parts = []
  for document in documents:
    cuts, size = [0], len(document.text)
    count = max(1, min(num_parts, size // _LEAST_PART))
    for number in range(1, count):
      cuts.append(_cut(document.text, cuts[-1], size * number // count))
    parts += _pieces(document, [*cuts, size])
  return parts


def _cut(text: str, low: int, at: int) -> int:
  """The last start of a line after `low` and up to `at`, else of a word, else `at` itself."""
  for mark in "\n ":
    found = text.rfind(mark, low, at) + 1
    if found > low:
      return found
  return max(low, at)


def _pieces(document: Document, cuts: Sequence[int]) -> list[Document]:
  return [
    Document(document.text[start:end], document.subset, document.location)
    for start, end in itertools.pairwise(cuts)
    if start < end
  ]
