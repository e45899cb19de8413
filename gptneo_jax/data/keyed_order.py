"""Orders that depend on a key: listed, or one place at a time without listing the others.

KeyedOrder is a Feistel network over a power of four; a number that leaves range(size) is sent
through it again until it comes back (cycle walking; Black and Rogaway, "Ciphers with Arbitrary
Finite Domains", 2002). An affine order, (a i + b) mod n, is not enough: it keeps the distances of
neighbours, which has spoiled a published run (Marin 32B's retrospective).
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_WORD = (1 << 64) - 1


def permutation(size: int, *key: int) -> np.ndarray:
  """Permutation of range(size) that depends on the key alone.

  Sorts raw bits, whose stream NumPy guarantees; `Generator.permutation` may change with a release,
  and a resumed run would then silently read other documents.
  """
  bits = np.random.PCG64(np.random.SeedSequence([part % 2**64 for part in key]))
  return np.argsort(bits.random_raw(size), kind="stable")


class KeyedOrder:
  """A permutation of range(size) that depends on the key alone, one number at a time."""

  def __init__(self, size: int, *key: int):
    if size < 1:
      raise ValueError(f"an order of {size} things")
    self._size = size
    self._half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits of each half of a number
    # NumPy guarantees what SeedSequence makes, whatever its release.
    entropy = np.random.SeedSequence([part % 2**64 for part in key])
    self._keys = [int(word) for word in entropy.generate_state(_ROUNDS, np.uint64)]

  def __getitem__(self, place: int) -> int:
    """What stands at a place."""
    if not 0 <= place < self._size:
      raise IndexError(place)
    mask = (1 << self._half) - 1
    while True:
      left, right = place >> self._half, place & mask
      for key in self._keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
      place = left << self._half | right
      if place < self._size:
        return place


def _mixed(word: int) -> int:
  """64 bits of which each depends on all of `word`. Source: Steele et al., SplitMix64, 2014."""
  word = (word + 0x9E3779B97F4A7C15) & _WORD
  word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _WORD
  word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _WORD
  return word ^ word >> 31
