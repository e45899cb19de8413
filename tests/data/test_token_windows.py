"""Windows of token shards: each once an epoch over all streams, entered anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import token_windows
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.data.token_windows import WindowStream
from tests.helpers.token_folders import write


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """3,000 ids that are their places."""
  parts = np.split(np.arange(3000), [1000, 1000, 2100])
  folder = write(tmp_path_factory.mktemp("w") / "s", *[[part] for part in parts])
  return TokenShards(str(folder))


def streams_of(shards, width, count, seed=1):
  return [
    WindowStream(shards, width=width, stream=n, num_streams=count, key=(seed, 0))
    for n in range(count)
  ]


@settings(max_examples=30, deadline=None)
@given(
  width=st.integers(2, 60), count=st.integers(1, 9), run=st.integers(1, 400), seed=st.integers(0, 9)
)
def test_each_window_once_an_epoch(shards, width, count, run, seed):
  """Whatever the sizes of runs; the streams' shares differ by one window at most."""
  block, token_windows.BLOCK = token_windows.BLOCK, run
  try:
    streams = streams_of(shards, width, count, seed)
    shares = [stream._count for stream in streams]
    assert max(shares) - min(shares) <= 1
    orders = []
    for _ in range(2):
      found = [stream.next_document() for n, stream in enumerate(streams) for _ in range(shares[n])]
      starts = [int(window[0]) for window in found]
      assert sorted(starts) == list(range(0, 3000 // width * width, width))
      for window in found:
        np.testing.assert_array_equal(window, np.arange(window[0], window[0] + width))
      orders.append(starts)
    assert orders[0] != orders[1] or len(orders[0]) < 5
    assert {stream.epochs for stream in streams} == {2.0}
  finally:
    token_windows.BLOCK = block


@settings(max_examples=20, deadline=None)
@given(taken=st.integers(0, 700))
def test_its_state_continues_it(shards, taken):
  """Also at the end of an epoch, and without taking anything before."""
  stream, other = (streams_of(shards, 13, 3)[1] for _ in range(2))
  for _ in range(taken):
    stream.next_document()
  state = stream.get_state()
  other.set_state(state)
  assert other.get_state() == state
  for _ in range(5):
    np.testing.assert_array_equal(stream.next_document(), other.next_document())


def test_the_order_is_of_the_key(shards):
  first = [int(streams_of(shards, 10, 1, seed)[0].next_document()[0]) for seed in range(12)]
  assert len(set(first)) > 6


def test_fewer_windows_than_streams(shards):
  with pytest.raises(DataError, match="are 2 rows of 1100, fewer than the 3 streams"):
    streams_of(shards, 1100, 3)
