"""Which caches are kept, and which leave."""

import jax.numpy as jnp
import pytest

from gptneo_jax.generation.kv_cache import LayerCache
from gptneo_jax.generation.prefixes import Prefixes


def cache(places: int):
  """A cache of one row of 8 bytes a place."""
  return (LayerCache(jnp.zeros((1, places, 1)), jnp.zeros((1, places, 1))),)


@pytest.fixture
def prefixes():
  return Prefixes(limit=80)


def test_the_longest_beginning(prefixes):
  two, four = cache(2), cache(4)
  prefixes.keep([1, 2], two)
  prefixes.keep([1, 2, 3, 4], four)
  assert prefixes.longest([1, 2, 3, 4, 5]) == (4, four)
  assert prefixes.longest([1, 2, 3, 9]) == prefixes.longest([1, 2]) == (2, two)
  assert prefixes.longest([1]) == prefixes.longest([2, 2, 3]) == prefixes.longest([]) == (0, None)


def test_what_was_used_longest_ago_leaves_first(prefixes):
  for first in (1, 2):
    prefixes.keep([first], cache(4))
  assert prefixes.size == 64 and prefixes.longest([1])[0] == 1
  prefixes.keep([3], cache(4))
  assert prefixes.longest([2]) == (0, None) and prefixes.longest([1])[0] == 1
  assert prefixes.size == 64


def test_what_is_too_large_is_not_kept(prefixes):
  prefixes.keep([1], cache(4))
  prefixes.keep([2], cache(11))
  prefixes.keep([], cache(1))
  assert prefixes.longest([2]) == (0, None) and prefixes.longest([1])[0] == 1
  prefixes.keep([1], cache(2))  # the same ids again
  assert prefixes.size == 16
  Prefixes(limit=0).keep([1], cache(1))
