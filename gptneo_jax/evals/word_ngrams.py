"""Normalised words of texts and hashes of their n-grams, computed for many characters at once.

The normalisation is GPT-3's for contamination (Brown et al. 2020, appendix C): words are separated
by white space; letters, digits and marks are kept, in lower case, and other characters dropped.

In names: U code points, W words, G n-grams, X texts.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

_CODE_POINTS = 0x110000
_SPACE = 32
_BASE = 0x9E3779B97F4A7C15  # of the hash: odd, so it has an inverse modulo 2^64


class Words(NamedTuple):
  """Normalised texts, concatenated, with one space between words."""

  text: str
  codes_U: np.ndarray  # uint32, code points of the text and of a space after it
  starts_W: np.ndarray  # index of each word's first character
  ends_W: np.ndarray  # index after each word's last character
  texts_X: np.ndarray  # index at which each of the texts begins

  def text_at(self, index: int) -> int:
    """Number of the text that a character belongs to."""
    return int(np.searchsorted(self.texts_X, index, side="right")) - 1


class Ngrams(NamedTuple):
  hashes_G: np.ndarray  # uint64
  starts_G: np.ndarray  # int64, index of the first character in Words.text
  ends_G: np.ndarray  # int64, index after the last


def normalised(text: str) -> str:
  """The normalised words of a text, with one space between them."""
  return split_words([text]).text


def split_words(texts: list[str]) -> Words:
  raw_U = _normalisation()[np.frombuffer(" ".join([*texts, ""]).encode("utf-32-le"), "<u4")]
  (kept_U,) = np.nonzero(raw_U)
  codes_U = raw_U[kept_U]
  space_U = codes_U == _SPACE
  # Of several spaces the first is kept; of those before the first word none.
  stays_U = ~space_U
  stays_U[1:] |= ~space_U[:-1]
  kept_U, codes_U, space_U = kept_U[stays_U], codes_U[stays_U], space_U[stays_U]
  (ends_W,) = np.nonzero(space_U)  # a space follows each word
  starts_W = np.concatenate([[0], ends_W[:-1] + 1]) if len(ends_W) else ends_W
  raw_texts_X = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
  return Words(
    text=codes_U[:-1].astype("<u4").tobytes().decode("utf-32-le"),
    codes_U=codes_U,
    starts_W=starts_W,
    ends_W=ends_W,
    texts_X=np.searchsorted(kept_U, raw_texts_X),
  )


def ngrams(words: Words, n: int) -> Ngrams:
  """The n-grams that lie within one text, in order.

  The hash of characters c_0, c_1, ... is the polynomial sum c_i * B^i modulo 2^64, which prefix
  sums give with one subtraction and a multiplication by an inverse power. Its low bits are weak, so
  the bits are mixed at the end.
  """
  starts_G, ends_G = words.starts_W[: len(words.starts_W) - n + 1], words.ends_W[n - 1 :]
  if not len(starts_G) or not len(ends_G):
    return Ngrams(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
  within_G = np.ones(len(starts_G), bool)
  for first in np.searchsorted(words.starts_W, words.texts_X[1:]).tolist():  # word of a text
    within_G[max(first - n + 1, 0) : first] = False
  starts_G, ends_G = starts_G[within_G], ends_G[within_G]
  powers, inverses = _powers(1 << len(words.codes_U).bit_length())
  sums = np.zeros(len(words.codes_U) + 1, np.uint64)
  np.cumsum(words.codes_U * powers[: len(words.codes_U)], out=sums[1:])
  return Ngrams(_mixed((sums[ends_G] - sums[starts_G]) * inverses[starts_G]), starts_G, ends_G)


def _mixed(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
  """B^i and B^-i modulo 2^64 for i < size."""
  bases = (_BASE, pow(_BASE, -1, 1 << 64))
  powers = [np.full(size, base, np.uint64) for base in bases]
  for array in powers:
    array[0] = 1
    np.cumprod(array, out=array)
  return powers[0], powers[1]


@functools.cache
def _normalisation() -> np.ndarray:
  """What each code point becomes: its lower case, a space, or 0 if it is dropped."""
  table = np.zeros(_CODE_POINTS, np.uint32)
  for code, character in enumerate(map(chr, range(_CODE_POINTS))):
    if unicodedata.category(character)[0] in "LNM":
      table[code] = ord(character.lower()[0])
    elif character.isspace():
      table[code] = _SPACE
  return table
