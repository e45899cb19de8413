"""Caches of prompts and conversations that are kept: what continues them reads only the rest.

Only a whole cache can be continued: the ring of a local layer holds the last columns alone, so what
a prefix of it would need has been overwritten.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax

from gptneo_jax.generation.kv_cache import KVCache


class Prefixes:
  """Caches of one row by the ids that they hold; those used longest ago leave first.

  limit: bytes of keys and values at most. size: bytes that are used.
  """

  def __init__(self, limit: int):
    self.limit, self.size = limit, 0
    self._caches: collections.OrderedDict[tuple[int, ...], KVCache] = collections.OrderedDict()

  def keep(self, ids: Sequence[int], cache: KVCache) -> None:
    """Keeps a cache that holds these ids and nothing needed after them."""
    key = tuple(ids)
    self._drop(key)
    if not key or _bytes(cache) > self.limit:
      return
    self._caches[key] = cache
    self.size += _bytes(cache)
    while self.size > self.limit:
      self._drop(next(iter(self._caches)))

  def longest(self, ids: Sequence[int]) -> tuple[int, KVCache | None]:
    """How many of the first ids the longest cache holds, and the cache; 0 and None if none does."""
    lengths = {len(key) for key in self._caches if len(key) <= len(ids)}
    for length in sorted(lengths, reverse=True):
      key = tuple(ids[:length])
      if key in self._caches:
        self._caches.move_to_end(key)
        return length, self._caches[key]
    return 0, None

  def _drop(self, key: tuple[int, ...]) -> None:
    cache = self._caches.pop(key, None)
    if cache is not None:
      self.size -= _bytes(cache)


def _bytes(cache: KVCache) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
