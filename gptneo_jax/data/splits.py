"""What is held out of a training source: documents by the hash of their text, or the end of its
only document."""

import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gptneo_jax.data.documents import Cursor, Document, Wanted

_HASHES = 2**48
_MIN_PART_CHARACTERS = 32  # documents are not cut into shorter parts


class Shares(NamedTuple):
  """Shares of the training documents that are held out.

  The test split takes the smallest hash positions, validation the next ones.
  """

  validation: float
  test: float

  def bounds(self, split: str) -> tuple[float, float]:
    """Hash positions of a split: at least the first, below the second."""
    low, high = self.test, self.test + self.validation
    return {"test": (0.0, low), "validation": (low, high), "train": (high, 1.0)}[split]


def hash_position(text: str) -> float:
  """The hash of a text, scaled to [0, 1): equal texts fall in the same split."""
  digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
  return int.from_bytes(digest, "big") / _HASHES


def with_validation(shares: Shares, texts: Iterable[str]) -> Shares:
  """The shares, with that of validation enlarged if it would hold none of the texts.

  Reads up to the first text of validation. If there is none, validation takes the smallest hashes
  that are not the test split's: its share of the texts, and at least one.
  """
  low, high = shares.bounds("validation")
  others = []
  for text in texts:
    position = hash_position(text)
    if low <= position < high:
      return shares
    others.append(position)
  count = max(1, round(shares.validation * len(others)))
  smallest = heapq.nsmallest(count, {position for position in others if position >= high})
  if not smallest:
    return shares
  return Shares(smallest[-1] + 0.5 / _HASHES - low, shares.test)


class InMemorySource:
  """A source whose documents are in memory, as one shard."""

  def __init__(self, documents: Sequence[Document]):
    self.documents = documents
    self.shards = [document.location.rpartition(":")[0] for document in documents[:1]]

  def size(self, shard: int) -> int:
    """0: the shard is not a file."""
    return 0

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """As JsonLines.read."""
    for number in range(start[0], len(self.documents)):
      if wanted(number):
        yield (number + 1, 0), self.documents[number]


def split_document(document: Document, shares: Shares, split: str) -> list[Document]:
  """The part of a source's only document that is in a split, as a list of at most one.

  Train is its beginning, then come test and validation. The cuts are at the start of a line, or of
  a word if the line is too long.
  """
  text = document.text
  end = len(text)
  test_end = end
  if shares.validation:
    test_end = _cut(text, end // 2, min(int(end * (1 - shares.validation)), end - 1))
  train_end = test_end
  if shares.test:
    highest = int(end * (1 - shares.validation - shares.test))
    train_end = min(_cut(text, highest // 2, highest), test_end)
  start, end = {
    "train": (0, train_end), "test": (train_end, test_end), "validation": (test_end, end)
  }[split]  # fmt: skip
  return _parts(document, [start, end])


def cut_in_parts(documents: Sequence[Document], num_parts: int) -> list[Document]:
  """The documents, each cut at lines or words in `num_parts` parts of about the same size.

  A short document is cut in fewer.
  """
  parts = []
  for document in documents:
    cuts, size = [0], len(document.text)
    count = max(1, min(num_parts, size // _MIN_PART_CHARACTERS))
    for number in range(1, count):
      cuts.append(_cut(document.text, cuts[-1], size * number // count))
    parts += _parts(document, [*cuts, size])
  return parts


def _cut(text: str, low: int, high: int) -> int:
  """The last start of a line after `low` and up to `high`, else of a word, else `high` itself."""
  for before in "\n ":
    found = text.rfind(before, low, high) + 1
    if found > low:
      return found
  return max(low, high)


def _parts(document: Document, cuts: Sequence[int]) -> list[Document]:
  return [
    Document(document.text[start:end], document.subset, document.location)
    for start, end in itertools.pairwise(cuts)
    if start < end
  ]
