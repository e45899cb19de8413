"""The sizes of the slots' buffers."""

import jax
import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.generation import kv_cache, slots


@pytest.mark.parametrize("positions", [48, 640, 1000, 2048])
def test_a_buffer_holds_what_is_put_into_it(positions):
  sizes = set()
  for columns in range(1, positions + 1):
    size = slots.slot_columns(columns, positions)
    read_in = slots.row_columns(columns, positions)
    sizes.add(size)
    # The last piece of a prompt may be padded by nearly a chunk.
    assert columns <= size <= read_in and (size < positions or size >= positions + 63)
  assert len(sizes) <= 7


def test_few_counts():
  assert [slots.slot_count(n, 48) for n in (0, 1, 2, 5, 9, 17, 33)] == [1, 1, 4, 8, 16, 32, 48]
  assert {slots.slot_count(n, 8) for n in range(9)} == {1, 4, 8}


def test_bytes_are_those_of_the_buffers():
  config = PRESETS["neo_125m"]
  cache = jax.eval_shape(lambda: kv_cache.make_cache(config, 1, 512))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
  assert slots.bytes_of_slot(config, 512) == size
