"""Orders that are computed one number at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.keyed_order import KeyedOrder


def listed(size, *key):
  order = KeyedOrder(size, *key)
  return [order[place] for place in range(size)]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), key=st.lists(st.integers(-5, 2**70), min_size=1, max_size=3))
def test_each_number_once(size, key):
  assert sorted(listed(size, *key)) == list(range(size))


def test_keys_differ_and_one_key_stays():
  """The second is what a stopped run relies on."""
  assert listed(10, 1, 2) == [7, 2, 3, 1, 4, 5, 8, 0, 9, 6]
  assert listed(100, 1, 2) != listed(100, 2, 1) != listed(100, 1, 3)
  assert KeyedOrder(10**15, 7)[10**15 - 1] < 10**15


def test_neighbours_are_not_kept():
  """Differences of neighbours, the places themselves, and pairs of keys: as of random orders."""
  from scipy import stats

  size, rooms = 4096, 16
  one, other = np.array(listed(size, 3)), np.array(listed(size, 4))
  for pair in (
    (np.arange(size), one), (one, other), (one[:-1], one[1:]),
    (np.diff(one) % size, one[1:]), ((one[1:] - 1) % size, one[:-1]),
  ):  # fmt: skip
    counts = np.histogram2d(*pair, bins=rooms, range=[[0, size]] * 2)[0]
    assert stats.chi2_contingency(counts).pvalue > 1e-4


@pytest.mark.parametrize("size, place", [(0, 0), (5, 5), (5, -1)])
def test_what_is_not_there(size, place):
  with pytest.raises((ValueError, IndexError)):
    KeyedOrder(size, 1)[place]
