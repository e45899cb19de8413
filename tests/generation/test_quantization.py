"""Quantized weights: their error, their products of integers, and the same again from disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax import evaluate, generate
from gptneo_jax.errors import UserError
from gptneo_jax.generation import cached_forward, kv_cache, quantization, unstacked
from tests.helpers.small_models import NEO, random_params

CONFIG = NEO.replace(hidden_size=64, num_layers=2, vocab_size=64, vocab_multiple=1)
GPT2 = CONFIG.replace(
  model_type="gpt2", attention_pattern=("global",), scale_attn_by_inverse_layer_idx=True,
  activation_function="relu",
)  # fmt: skip


def unstacked_of(config):
  return unstacked.unstack(config, random_params(config))


def logits(config, unstacked_params, ids_BxT):
  B, T = ids_BxT.shape
  hidden_DxBxT, _ = cached_forward.forward_with_cache(
    config,
    unstacked_params,
    kv_cache.make_cache(config, B, 64),
    ids_BxT,
    0,
    T,
    np.zeros(B, np.int32),
  )
  return cached_forward.unembed(config, unstacked_params, hidden_DxBxT.reshape(-1, B * T))


@pytest.mark.parametrize("mode, rounding", [("int8", 1 / 127), ("w8a8", 1 / 127), ("int4", 1 / 7)])
def test_each_weight_is_within_half_a_step(mode, rounding):
  unstacked_params = unstacked_of(GPT2)
  plain = quantization.dequantize(quantization.quantize(unstacked_params, mode), unstacked_params)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(unstacked_params), jax.tree.leaves(plain)
  ):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith(("kernel", "wte")):
      np.testing.assert_array_equal(x, y, name)
      continue
    outputs = 3 if "qkv" in name else 1
    rows = x.reshape(-1, np.prod(x.shape[outputs:]))
    groups = rows.reshape(len(rows), -1, 64 if mode == "int4" else rows.shape[1])
    step = np.abs(groups).max(-1, keepdims=True) * rounding
    assert (np.abs(groups - np.asarray(y).reshape(groups.shape)) <= 0.51 * step).all(), name


@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["neo", "gpt2"])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_weights_compute_what_dequantized_ones_do(config, mode):
  unstacked_params = unstacked_of(config)
  quantized = quantization.quantize(unstacked_params, mode)
  ids_BxT = np.random.default_rng(0).integers(0, 64, (2, 9))
  expected = logits(config, quantization.dequantize(quantized, unstacked_params), ids_BxT)
  np.testing.assert_allclose(logits(config, quantized, ids_BxT), expected, atol=2e-4)
  if mode == "int8":
    plain = np.asarray(logits(config, unstacked_params, ids_BxT))
    assert np.abs(np.asarray(expected) - plain).max() < 0.1 * np.abs(plain).max()


def test_products_of_integers():
  """w8a8: the dot of int8 and int8 in int32, times both scales; nothing else is rounded."""
  rng = np.random.default_rng(0)
  weight, x_64x3 = (rng.normal(size=shape).astype(np.float32) for shape in ((32, 64), (64, 3)))
  kernel = quantization.quantize({"kernel": jnp.asarray(weight)}, "w8a8")["kernel"]
  # The largest of a token's activations is at the edge of the 255 steps.
  scale_3 = np.abs(x_64x3).max(0) / np.float32(127.5)
  whole_64x3 = np.clip(np.round(x_64x3 / scale_3), -128, 127).astype(np.int64)
  products = np.asarray(kernel.weight.qvalue, np.int64) @ whole_64x3
  expected = products * np.asarray(kernel.weight.scale, np.float64) * scale_3
  got = jax.jit(lambda x: kernel.matmul(x, jnp.float32))(x_64x3)
  np.testing.assert_allclose(got, expected, rtol=2.5e-7, atol=0)  # two products of float32
  text = jax.jit(lambda x: kernel.matmul(x, jnp.float32)).lower(x_64x3).as_text()
  assert "xi8>" in text and "xi32>" in text


@pytest.mark.parametrize("mode", quantization.MODES)
def test_saved_and_loaded(mode, tmp_path):
  quantized = quantization.quantize(unstacked_of(CONFIG), mode)
  file = tmp_path / "weights.safetensors"
  quantization.save(file, quantized, mode)
  assert quantization.mode_of(file) == mode
  assert file.stat().st_size < 1.3 * quantization.size(quantized) + 8192
  again = quantization.load(file, quantized)
  jax.tree.map(np.testing.assert_array_equal, again, quantized)
  other = quantization.quantize(unstacked_of(CONFIG.replace(num_layers=4)), mode)
  with pytest.raises(UserError, match="holds no layers/2"):
    quantization.load(file, other)
  file.write_bytes(b"no")
  with pytest.raises(UserError, match="is damaged"):
    quantization.mode_of(file)


def test_unknown_mode():
  with pytest.raises(UserError, match="'int3'; there are int8, w8a8, int4"):
    quantization.quantize(unstacked_of(CONFIG), "int3")


def test_a_quantized_model(tmp_path):
  """Generates, is saved and opened again the same, and has dequantized weights."""
  import gptneo_jax
  from gptneo_jax import engine, model_io

  lm = engine.LanguageModel(
    model_io.LoadedModel(CONFIG, random_params(CONFIG)), model_io.first_device()
  )
  lm.save(str(tmp_path / "plain"))
  small = gptneo_jax.load(str(tmp_path / "plain"), quantization="int8")
  assert small.quantization == "int8"
  ids = [[5, 6, 7], [8]]
  got = small.generate(ids, max_new_tokens=8)
  small.save(str(tmp_path / "small"))
  again = gptneo_jax.load(str(tmp_path / "small"))
  assert again.quantization == "int8" and again.config == lm.config
  np.testing.assert_array_equal(again.generate(ids, max_new_tokens=8).sequences, got.sequences)
  near, plain = np.asarray(again.logits([[5, 6, 7]])), np.asarray(lm.logits([[5, 6, 7]]))
  assert 0 < np.abs(near - plain).max() < 0.1 * np.abs(plain).max()
  for other in ({"quantization": "int4"}, {"step": 0}):
    with pytest.raises(UserError, match="quantized as int8: they take no adapter, step, other"):
      gptneo_jax.load(str(tmp_path / "small"), **other)
  with pytest.raises(UserError, match="quantized; resize it before"):
    again.resize_vocabulary(70)


def test_the_old_spelling_names_the_new_one():
  import gptneo_jax

  message = r"load: quantise is not supported; did you mean quantization\?"
  with pytest.raises(UserError, match=message):
    gptneo_jax.load("nowhere", quantise="int8")
  for program in (generate, evaluate):
    with pytest.raises(UserError, match=r"unknown flag --quantise; did you mean --quantization\?"):
      program.main(["--checkpoint", "nowhere", "--quantise", "int8"])
