"""Contamination: which evaluation items share long n-grams of words with the training data.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): 13 words in a row, whatever their case,
punctuation and white space. A word is what stands between white space; of its characters only
letters, digits and marks count, in lower case. Writing without spaces has few words, and the rule
finds little there.

Training text streams past once. Its n-grams are hashed, all of a piece at a time, those whose hash
an item has are looked at, and only equal words count. Memory holds the items and one piece.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax.cli import progress_bar
from gptneo_jax.data import DataConfig, Document
from gptneo_jax.data.documents import BadRecords
from gptneo_jax.data.files import match_files
from gptneo_jax.data.sources import holds_records, open_components
from gptneo_jax.errors import UserError

_PIECE = 1 << 17  # characters hashed at once: few enough to stay in the processor's cache
_CODE_POINTS = 0x110000
_SPACE = 32
_BASE = 0x9E3779B97F4A7C15  # of the hash: odd, so it has an inverse modulo 2^64
_SLOTS_PER_NGRAM = 16  # of the filter: one n-gram in 16 passes it by chance


def find(
  items: Iterable[tuple[str, str]], train_glob: str, *, n: int = 13, progress: bool = True
) -> dict[str, Any]:
  """Items that share n words in a row with the training data.

  Args:
    items: (name, text) of each item of the evaluation.
    train_glob: files as `data.path` takes them, of records or of text. Bad records are passed over
      and counted.
    n: words in a row.
    progress: whether to show a progress bar.

  Returns:
    n; counts of items, of those that are too_short (fewer than n words) and overlapping, and the
    share of these; overlaps: of each such item its name, the n-gram met first, where in the
    training data (train_location, train_subset), and how many different ones it shares
    (shared_ngrams); training_documents, training_bytes (UTF-8), bad_records (by what is wrong).

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
      index.look(texts, documents)
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
  """(TASK:NUMBER, all text of the item) of the harness' samples, to be looked for."""
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


def normalised(text: str) -> str:
  """The words of a text, by the rule above, with one space between them."""
  return _join([text]).text


class _Index:
  """The n-grams of the items, sorted by hash, and which of them the training data has."""

  def __init__(self, items: Iterable[tuple[str, str]], n: int):
    self._n = n
    self.names: list[str] = []
    self.too_short = 0
    self._texts: list[str] = []
    self._met: dict[int, tuple[str, Document]] = {}  # item -> its first n-gram met, and where
    hashes, spans = [np.zeros(0, np.uint64)], [np.zeros((0, 3), np.int64)]
    for number, (name, text) in enumerate(items):
      words = _join([text])
      ngrams = _ngrams(words, n)
      self.names.append(name)
      self._texts.append(words.text)
      self.too_short += not len(ngrams.hashes)
      hashes.append(ngrams.hashes)
      spans.append(
        np.stack([np.full_like(ngrams.starts, number), ngrams.starts, ngrams.ends], axis=1)
      )
    hashes_N, spans_Nx3 = np.concatenate(hashes), np.concatenate(spans)
    order_N = np.argsort(hashes_N, kind="stable")
    self._hashes_N = hashes_N[order_N]
    self._spans_Nx3 = spans_Nx3[order_N]  # item, and start and end in its normalised text
    self._found_N = np.zeros(len(order_N), bool)
    # All n-grams with the hash at its first place are found: no need to look at it again.
    self._settled_N = np.zeros(len(order_N), bool)
    bits = max(16, int(_SLOTS_PER_NGRAM * len(order_N)).bit_length())
    self._shift = np.uint64(64 - bits)
    self._filter = np.zeros(1 << bits, bool)
    self._filter[self._hashes_N >> self._shift] = True

  def look(self, texts: list[str], documents: list[Document]) -> None:
    """Marks the n-grams that these pieces of documents have."""
    words = _join(texts)
    ngrams = _ngrams(words, self._n)
    (passed,) = np.nonzero(self._filter[ngrams.hashes >> self._shift])
    if not len(passed):
      return
    place = np.searchsorted(self._hashes_N, ngrams.hashes[passed])
    place = np.minimum(place, len(self._hashes_N) - 1)
    same = (self._hashes_N[place] == ngrams.hashes[passed]) & ~self._settled_N[place]
    for first, ngram in zip(place[same].tolist(), passed[same].tolist()):
      if not self._settled_N[first]:
        start, end = int(ngrams.starts[ngram]), int(ngrams.ends[ngram])
        self._compare(first, words.text[start:end], documents[words.text_at(start)])

  def _compare(self, first: int, ngram: str, document: Document) -> None:
    """Compares the n-gram's words with those of all n-grams with its hash, from `first` on."""
    last = np.searchsorted(self._hashes_N, self._hashes_N[first], side="right")
    for i in range(first, int(last)):
      if not self._found_N[i] and self._ngram(i) == ngram:
        self._found_N[i] = True
        self._met.setdefault(int(self._spans_Nx3[i, 0]), (ngram, document))
    self._settled_N[first] = self._found_N[first:last].all()

  def _ngram(self, i: int) -> str:
    item, start, end = self._spans_Nx3[i].tolist()
    return self._texts[item][start:end]

  def overlaps(self) -> list[dict[str, Any]]:
    shared: dict[int, set[str]] = {item: set() for item in self._met}
    for i in np.flatnonzero(self._found_N).tolist():
      shared[int(self._spans_Nx3[i, 0])].add(self._ngram(i))
    return [
      {
        "item": self.names[item],
        "ngram": ngram,
        "train_location": document.location,
        "train_subset": document.subset,
        "shared_ngrams": len(shared[item]),
      }
      for item, (ngram, document) in sorted(self._met.items())
    ]


# --- training documents ---------------------------------------------------------------------------


def _documents(train_glob: str, bad_records: BadRecords) -> Iterator[Document]:
  _, files = match_files(train_glob, folders=True)
  records = any(map(holds_records, files))
  config = DataConfig(
    source="jsonl" if records else "text", path=train_glob, validation_fraction=0.0
  )
  for component in open_components(config, "train", bad_records):
    yield from component.documents()


def _pieces(documents: Iterable[Document], n: int) -> Iterator[tuple[list[str], list[Document]]]:
  """Texts of about _PIECE characters in all, and the document of each.

  A longer document comes in parts that end at white space, each with the last n - 1 words of what
  came before, so that each of its n-grams is whole in one part.
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


# --- words and their hashes, all at once ----------------------------------------------------------


class _Words(NamedTuple):
  """Normalised texts, one behind the other with one space between all words."""

  text: str
  codes_C: np.ndarray  # uint32, its code points
  starts_W: np.ndarray  # of each word, the place of its first character
  ends_W: np.ndarray  # and the place behind its last
  pieces_P: np.ndarray  # where each of the texts begins

  def text_at(self, place: int) -> int:
    """Number of the text that a character belongs to."""
    return int(np.searchsorted(self.pieces_P, place, side="right")) - 1


class _Ngrams(NamedTuple):
  hashes: np.ndarray  # uint64
  starts: np.ndarray  # int64, places of their first characters
  ends: np.ndarray  # and behind their last ones


def _join(texts: list[str]) -> _Words:
  raw_C = _folding()[np.frombuffer(" ".join([*texts, ""]).encode("utf-32-le"), "<u4")]
  (kept_C,) = np.nonzero(raw_C)
  codes_C = raw_C[kept_C]
  space_C = codes_C == _SPACE
  # Of several spaces the first stays; of those before the first word none.
  stays_C = ~space_C
  stays_C[1:] |= ~space_C[:-1]
  kept_C, codes_C, space_C = kept_C[stays_C], codes_C[stays_C], space_C[stays_C]
  (ends_W,) = np.nonzero(space_C)  # a space stands behind each word
  starts_W = np.concatenate([[0], ends_W[:-1] + 1]) if len(ends_W) else ends_W
  begins_P = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
  text = codes_C[:-1].astype("<u4").tobytes().decode("utf-32-le")
  return _Words(text, codes_C, starts_W, ends_W, np.searchsorted(kept_C, begins_P))


def _ngrams(words: _Words, n: int) -> _Ngrams:
  """Those that lie in one text, in order.

  The hash of a run of characters c is the polynomial sum c_i · B^i modulo 2^64, i from 0: from
  prefix sums, each with one subtraction and a product with an inverse power. B's low bits and the
  characters' make weak low bits, so the bits are mixed in the end.
  """
  starts, ends = words.starts_W[: len(words.starts_W) - n + 1], words.ends_W[n - 1 :]
  if not len(starts) or not len(ends):
    return _Ngrams(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
  whole = np.ones(len(starts), bool)
  for first in np.searchsorted(words.starts_W, words.pieces_P[1:]).tolist():  # word of a text
    whole[max(first - n + 1, 0) : first] = False
  starts, ends = starts[whole], ends[whole]
  powers, inverses = _powers(1 << len(words.codes_C).bit_length())
  sums = np.zeros(len(words.codes_C) + 1, np.uint64)
  np.cumsum(words.codes_C * powers[: len(words.codes_C)], out=sums[1:])
  return _Ngrams(_mixed((sums[ends] - sums[starts]) * inverses[starts]), starts, ends)


def _mixed(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
  """B^i and B^-i modulo 2^64, i below `size`."""
  bases = (_BASE, pow(_BASE, -1, 1 << 64))
  powers = [np.full(size, base, np.uint64) for base in bases]
  for array in powers:
    array[0] = 1
    np.cumprod(array, out=array)
  return powers[0], powers[1]


@functools.cache
def _folding() -> np.ndarray:
  """What each code point becomes: lower case, a space, or 0 where it is dropped."""
  table = np.zeros(_CODE_POINTS, np.uint32)
  for code, character in enumerate(map(chr, range(_CODE_POINTS))):
    if unicodedata.category(character)[0] in "LNM":
      table[code] = ord(character.lower()[0])
    elif character.isspace():
      table[code] = _SPACE
  return table
