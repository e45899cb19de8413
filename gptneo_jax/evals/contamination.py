"""Contamination: which evaluation items share long n-grams of words with the training data.

The rule is GPT-3's (Brown et al. 2020, appendix C): 13 words in a row, after the normalisation of
word_ngrams.py. It finds little in scripts without spaces, which have few words.

The training text is read once, in pieces. A piece's n-grams are hashed, and those with the hash of
an item's n-gram are compared word by word. Memory holds the items and one piece.

In names: G n-grams of the items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gptneo_jax.cli import progress_bar
from gptneo_jax.data import (
  BadRecords,
  DataConfig,
  Document,
  holds_records,
  match_files,
  open_components,
)
from gptneo_jax.errors import UserError
from gptneo_jax.evals.word_ngrams import ngrams, normalised, split_words

_PIECE = 1 << 17  # characters hashed at once: few enough to stay in the processor's cache
_SLOTS_PER_NGRAM = 16  # of the filter: one of 16 other n-grams passes it by chance


def find(
  items: Iterable[tuple[str, str]], train_glob: str, *, n: int = 13, progress: bool = True
) -> dict[str, Any]:
  """Items that share n words in a row with the training data.

  Args:
    items: (name, text) of each item of the evaluation.
    train_glob: files as `data.path` takes them, of records or of text. Bad records are skipped and
      counted.
    n: words in a row.
    progress: whether to show a progress bar.

  Returns:
    n.
    items, too_short, overlapping: number of items, of those with fewer than n words, and of those
      that share an n-gram; share: overlapping / items.
    overlaps: for each overlapping item its name, the first n-gram found, where in the training data
      (train_location, train_subset), and the number of distinct n-grams shared (shared_ngrams).
    training_documents, training_bytes (UTF-8), bad_records (by reason).

  Raises:
    UserError: no item, no training document, or n below 1.
  """
  if n < 1:
    raise UserError(f"n-grams of {n} words: at least 1 is needed")
  index = _Index(items, n)
  if not index.names:
    raise UserError("no evaluation item to look for in the training data")
  bad_records = BadRecords("skip")
  count = size = 0
  with progress_bar(desc="training text", unit="B", unit_scale=True, disable=not progress) as bar:

    def read() -> Iterator[Document]:
      nonlocal count, size
      for document in _documents(train_glob, bad_records):
        length = len(document.text.encode())
        count, size = count + 1, size + length
        bar.update(length)
        yield document

    for texts, documents in _pieces(read(), n):
      index.mark(texts, documents)
  if not count:
    raise UserError(f"{train_glob}: no document")
  bad_records.log_summary()
  overlaps = index.overlaps()
  return {
    "n": n,
    "items": len(index.names),
    "too_short": index.too_short,
    "overlapping": len(overlaps),
    "share": len(overlaps) / len(index.names),
    "overlaps": overlaps,
    "training_documents": count,
    "training_bytes": size,
    "bad_records": bad_records.counts,
  }


def items_of_tasks(
  samples: Mapping[str, Iterable[Mapping[str, Any]]],
) -> list[tuple[str, str]]:
  """(TASK:NUMBER, all its text) of each item in the samples of harness tasks."""
  return [
    (f"{task}:{row['doc_id']}", " ".join(_texts(row["doc"])))
    for task, rows in samples.items()
    for row in rows
  ]


def _texts(value: Any) -> Iterator[str]:
  """All texts in parsed JSON."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list | tuple):
    for part in value.values() if isinstance(value, dict) else value:
      yield from _texts(part)


class _Index:
  """The n-grams of the items sorted by hash, and which of them the training data has."""

  def __init__(self, items: Iterable[tuple[str, str]], n: int):
    self._n = n
    self.names: list[str] = []
    self.too_short = 0
    self._texts: list[str] = []
    self._first: dict[int, tuple[str, Document]] = {}  # item: the first n-gram found, and where
    hashes, spans = [np.zeros(0, np.uint64)], [np.zeros((0, 3), np.int64)]
    for number, (name, text) in enumerate(items):
      words = split_words([text])
      own = ngrams(words, n)
      self.names.append(name)
      self._texts.append(words.text)
      self.too_short += not len(own.hashes_G)
      hashes.append(own.hashes_G)
      spans.append(np.stack([np.full_like(own.starts_G, number), own.starts_G, own.ends_G], axis=1))
    hashes_G, spans_Gx3 = np.concatenate(hashes), np.concatenate(spans)
    order_G = np.argsort(hashes_G, kind="stable")
    self._hashes_G = hashes_G[order_G]
    self._spans_Gx3 = spans_Gx3[order_G]  # item, and start and end in its normalised text
    self._found_G = np.zeros(len(order_G), bool)
    # At the first n-gram with a hash: all with the hash are found, and need no more comparisons.
    self._settled_G = np.zeros(len(order_G), bool)
    bits = max(16, int(_SLOTS_PER_NGRAM * len(order_G)).bit_length())
    self._shift = np.uint64(64 - bits)
    self._filter = np.zeros(1 << bits, bool)
    self._filter[self._hashes_G >> self._shift] = True

  def mark(self, texts: list[str], documents: list[Document]) -> None:
    """Marks the n-grams that are in these parts of documents."""
    words = split_words(texts)
    theirs = ngrams(words, self._n)
    (passed,) = np.nonzero(self._filter[theirs.hashes_G >> self._shift])
    if not len(passed):
      return
    place = np.searchsorted(self._hashes_G, theirs.hashes_G[passed])
    place = np.minimum(place, len(self._hashes_G) - 1)
    same = (self._hashes_G[place] == theirs.hashes_G[passed]) & ~self._settled_G[place]
    for first, number in zip(place[same].tolist(), passed[same].tolist()):
      if not self._settled_G[first]:
        start, end = int(theirs.starts_G[number]), int(theirs.ends_G[number])
        self._compare(first, words.text[start:end], documents[words.text_at(start)])

  def _compare(self, first: int, ngram: str, document: Document) -> None:
    """Compares the words of a training n-gram with the items' n-grams of its hash; `first` is the
    first of these."""
    last = np.searchsorted(self._hashes_G, self._hashes_G[first], side="right")
    for i in range(first, int(last)):
      if not self._found_G[i] and self._ngram(i) == ngram:
        self._found_G[i] = True
        self._first.setdefault(int(self._spans_Gx3[i, 0]), (ngram, document))
    self._settled_G[first] = self._found_G[first:last].all()

  def _ngram(self, i: int) -> str:
    item, start, end = self._spans_Gx3[i].tolist()
    return self._texts[item][start:end]

  def overlaps(self) -> list[dict[str, Any]]:
    shared: dict[int, set[str]] = {item: set() for item in self._first}
    for i in np.flatnonzero(self._found_G).tolist():
      shared[int(self._spans_Gx3[i, 0])].add(self._ngram(i))
    return [
      {
        "item": self.names[item],
        "ngram": ngram,
        "train_location": document.location,
        "train_subset": document.subset,
        "shared_ngrams": len(shared[item]),
      }
      for item, (ngram, document) in sorted(self._first.items())
    ]


# --- training documents ---------------------------------------------------------------------------


def _documents(train_glob: str, bad_records: BadRecords) -> Iterator[Document]:
  _, files = match_files(train_glob, folders=True)
  records = any(map(holds_records, files))
  config = DataConfig(
    source="auto" if records else "text", path=train_glob, validation_fraction=0.0
  )
  for component in open_components(config, "train", bad_records):
    yield from component.documents()


def _pieces(documents: Iterable[Document], n: int) -> Iterator[tuple[list[str], list[Document]]]:
  """Texts of about _PIECE characters in total, and the document of each.

  A longer document is split into parts at white space. Each begins with the last n - 1 words of the
  one before, so that every n-gram lies within a part.
  """
  texts, of, size = [], [], 0
  for document in documents:
    for text in _parts(document.text, n):
      texts.append(text)
      of.append(document)
      size += len(text)
      if size >= _PIECE:
        yield texts, of
        texts, of, size = [], [], 0
  if texts:
    yield texts, of


def _parts(text: str, n: int) -> Iterator[str]:
  start, before = 0, ""
  while len(text) - start > _PIECE:
    end = start + _PIECE
    while end < len(text) and not text[end].isspace():
      end += 1
    part = before + text[start:end]
    yield part
    before = " ".join([*normalised(part).rsplit(" ", n - 1)[-(n - 1) :], ""]) if n > 1 else ""
    start = end
  yield before + text[start:]
