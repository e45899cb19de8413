"""The cache: its memory, its lengths, its rows."""

import jax
import jax.numpy as jnp

from gptneo_jax.config import PRESETS
from gptneo_jax.generation import kv_cache
from tests.helpers.small_models import NEO


def test_memory_of_the_1p3b_model():
  """At 2048 positions at most 57% of what transformers keeps: every column in every layer."""
  config = PRESETS["neo_1p3b"]
  ours = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: kv_cache.make_cache(config, 1, 2048)))
  )
  theirs = 2 * 24 * 2048 * 2048 * 4
  assert ours / theirs <= 0.57


def test_few_buffer_lengths():
  sizes = {kv_cache.bucketed_length(n, 2048) for n in range(1, 2049)}
  assert sorted(sizes) == [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
  assert all(n <= kv_cache.bucketed_length(n, 2048) for n in range(1, 2049))
  assert kv_cache.bucketed_length(90, 100) == 128 and kv_cache.bucketed_length(1000, 1000) == 1024


def test_repeat_and_reorder():
  cache = kv_cache.make_cache(NEO, 2, 64)
  cache = jax.tree.map(lambda x: x + jnp.arange(2.0)[:, None, None, None], cache)
  twice = kv_cache.repeat(cache, 2)
  assert [float(x) for x in twice[0].keys[:, 0, 0, 0]] == [0, 0, 1, 1]
  again = kv_cache.reorder(twice, jnp.array([3, 0, 0, 2]))
  assert [float(x) for x in again[1].values[:, 0, 0, 0]] == [1, 0, 0, 1]
  assert kv_cache.repeat(kv_cache.make_cache(NEO, 1, 64), 3)[0].keys.shape == (3, 2, 64, 12)
