"""Tokens a few at a time against the whole forward pass; the ring; the two forms of the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.generation import cached_forward, unstacked
from gptneo_jax.generation import kv_cache as caches
from gptneo_jax.model.heads import build
from tests.helpers.small_models import NEO, random_params

CONFIGS = {
  "neo": NEO,
  "gpt2": NEO.replace(
    model_type="gpt2", attention_pattern=("global",), num_layers=2,
    scale_attn_by_inverse_layer_idx=True,
  ),
  "untied": NEO.replace(
    tie_word_embeddings=False, attention_pattern=("local",), num_layers=2,
    activation_function="silu",
  ),
}  # fmt: skip


@functools.cache
def whole(config):
  model = build(config)
  return jax.jit(lambda params, ids, **options: model.apply(
    {"params": params}, ids, method="logits", **options)[..., : config.vocab_size])  # fmt: skip


@functools.cache
def extend(config):
  def run(params, cache, ids_BxT, column, count, start_B):
    layered = unstacked.unstack(config, params)
    hidden_DxBxT, cache = cached_forward.extend(
      config, layered, cache, ids_BxT, column, count, start_B
    )
    B, T = ids_BxT.shape
    logits_NxV = cached_forward.unembed(config, layered, hidden_DxBxT.reshape(-1, B * T))
    return logits_NxV.reshape(B, T, -1), cache

  return jax.jit(run)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_unstack_and_stack(config):
  params = random_params(config)
  layered = unstacked.unstack(config, params)
  assert len(layered["layers"]) == config.num_layers
  jax.tree.map(np.testing.assert_array_equal, unstacked.stack(config, layered), params)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pieces", [(40,), (1,) * 30, (16, 1, 1, 16, 5, 1), (3, 30, 1, 1)], ids=str)
def test_pieces_equal_the_whole(config, pieces):
  """Past the window and round the ring several times, rows that begin at different columns."""
  params, start_B = random_params(config), np.array([0, 2, 7], np.int32)
  T = sum(pieces)
  ids_BxT = np.random.default_rng(1).integers(0, 61, (3, T))
  real_BxT = (np.arange(T) >= start_B[:, None]).astype(np.int32)
  positions_BxT = np.maximum(real_BxT.cumsum(1) - 1, 0)
  expected = whole(config)(params, ids_BxT, positions_BxT=positions_BxT, segment_ids_BxT=real_BxT)
  cache = caches.make_cache(config, 3, 64)
  c, outputs = 0, []
  for n in pieces:
    width = n if n == 1 else 16 * -(-n // 16)  # the rest is garbage, which no one may see
    piece = np.full((3, width), 60)
    piece[:, :n] = ids_BxT[:, c : c + n]
    logits, cache = extend(config)(params, cache, piece, c, n, start_B)
    outputs.append(np.asarray(logits)[:, :n])
    c += n
  logits = np.concatenate(outputs, axis=1)
  for b, start in enumerate(start_B):
    np.testing.assert_allclose(logits[b, start:], expected[b, start:], atol=3e-5)


@pytest.mark.parametrize("kept", [1, 9, 16])
def test_guesses_taken_back_were_never_there(kept):
  """After 17 tokens of which only the first `kept` count, decoding goes on as if alone."""
  params, start_B = random_params(NEO), np.zeros(1, np.int32)
  ids_1xT = np.random.default_rng(2).integers(0, 61, (1, 60))
  run = functools.partial(extend(NEO), params)
  _, cache = run(caches.make_cache(NEO, 1, 64), ids_1xT[:, :32], 0, 30, start_B)
  assert caches.SPARE_SLOTS == 16
  _, guessed = run(cache, ids_1xT[:, 30:47], 30, 17, start_B)
  expected, _ = run(cache, ids_1xT[:, 30 : 30 + kept + 1], 30, kept + 1, start_B)
  logits, _ = run(guessed, ids_1xT[:, 30 + kept : 31 + kept], 30 + kept, 1, start_B)
  np.testing.assert_allclose(logits[:, 0], expected[:, kept], atol=2e-5)


def test_memory_of_the_1p3b_model():
  """At 2048 positions at most 57% of what transformers keeps: every column in every layer."""
  config = PRESETS["neo_1p3b"]
  ours = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: caches.make_cache(config, 1, 2048)))
  )
  theirs = 2 * 24 * 2048 * 2048 * 4
  assert ours == caches.cache_bytes(config, 1, 2048)
  assert ours / theirs <= 0.57


def test_few_capacities():
  sizes = {caches.capacity(n, 2048) for n in range(1, 2049)}
  assert sorted(sizes) == [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
  assert all(n <= caches.capacity(n, 2048) for n in range(1, 2049))
  assert caches.capacity(90, 100) == 128 and caches.capacity(1000, 1000) == 1024


def test_repeat_and_reorder():
  cache = caches.make_cache(NEO, 2, 64)
  cache = jax.tree.map(lambda x: x + jnp.arange(2.0)[:, None, None, None], cache)
  twice = caches.repeat(cache, 2)
  assert [float(x) for x in twice[0].k[:, 0, 0, 0]] == [0, 0, 1, 1]
  again = caches.reorder(twice, jnp.array([3, 0, 0, 2]))
  assert [float(x) for x in again[1].v[:, 0, 0, 0]] == [1, 0, 0, 1]
  assert caches.repeat(caches.make_cache(NEO, 1, 64), 3)[0].k.shape == (3, 2, 64, 12)
