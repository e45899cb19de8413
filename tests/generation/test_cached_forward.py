"""Tokens a few at a time against one pass over all; the ring; the two layouts of the weights."""

import functools

import jax
import numpy as np
import pytest

from gptneo_jax.generation import cached_forward, kv_cache, unstacked
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
def one_pass(config):
  model = build(config)
  return jax.jit(lambda params, ids, **options: model.apply(
    {"params": params}, ids, method="logits", **options)[..., : config.vocab_size])  # fmt: skip


@functools.cache
def with_cache(config):
  def run(params, cache, ids_BxT, column, count, left_pad_B):
    unstacked_params = unstacked.unstack(config, params)
    hidden_DxBxT, cache = cached_forward.forward_with_cache(
      config, unstacked_params, cache, ids_BxT, column, count, left_pad_B
    )
    B, T = ids_BxT.shape
    logits_NxV = cached_forward.unembed(config, unstacked_params, hidden_DxBxT.reshape(-1, B * T))
    return logits_NxV.reshape(B, T, -1), cache

  return jax.jit(run)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_unstack_and_stack(config):
  params = random_params(config)
  unstacked_params = unstacked.unstack(config, params)
  assert len(unstacked_params["layers"]) == config.num_layers
  jax.tree.map(np.testing.assert_array_equal, unstacked.stack(config, unstacked_params), params)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pieces", [(40,), (1,) * 30, (16, 1, 1, 16, 5, 1), (3, 30, 1, 1)], ids=str)
def test_pieces_equal_one_pass(config, pieces):
  """Beyond the window and round the ring several times, with padding of different lengths."""
  params, left_pad_B = random_params(config), np.array([0, 2, 7], np.int32)
  T = sum(pieces)
  ids_BxT = np.random.default_rng(1).integers(0, 61, (3, T))
  real_BxT = (np.arange(T) >= left_pad_B[:, None]).astype(np.int32)
  positions_BxT = np.maximum(real_BxT.cumsum(1) - 1, 0)
  expected = one_pass(config)(
    params, ids_BxT, positions_BxT=positions_BxT, segment_ids_BxT=real_BxT
  )
  cache = kv_cache.make_cache(config, 3, 64)
  c, outputs = 0, []
  for n in pieces:
    width = n if n == 1 else 16 * -(-n // 16)  # the rest is garbage, which no token may attend to
    piece = np.full((3, width), 60)
    piece[:, :n] = ids_BxT[:, c : c + n]
    logits, cache = with_cache(config)(params, cache, piece, c, n, left_pad_B)
    outputs.append(np.asarray(logits)[:, :n])
    c += n
  logits = np.concatenate(outputs, axis=1)
  for b, start in enumerate(left_pad_B):
    np.testing.assert_allclose(logits[b, start:], expected[b, start:], atol=3e-5)


@pytest.mark.parametrize("kept", [1, 9, 16])
def test_tokens_taken_back_leave_no_trace(kept):
  """After 17 tokens of which the first `kept` count, decoding continues as with these alone."""
  params, left_pad_B = random_params(NEO), np.zeros(1, np.int32)
  ids_1xT = np.random.default_rng(2).integers(0, 61, (1, 60))
  run = functools.partial(with_cache(NEO), params)
  _, cache = run(kv_cache.make_cache(NEO, 1, 64), ids_1xT[:, :32], 0, 30, left_pad_B)
  assert kv_cache.SPECULATION_PLACES == 16
  _, speculated = run(cache, ids_1xT[:, 30:47], 30, 17, left_pad_B)
  expected, _ = run(cache, ids_1xT[:, 30 : 30 + kept + 1], 30, kept + 1, left_pad_B)
  logits, _ = run(speculated, ids_1xT[:, 30 + kept : 31 + kept], 30 + kept, 1, left_pad_B)
  np.testing.assert_allclose(logits[:, 0], expected[:, kept], atol=2e-5)
