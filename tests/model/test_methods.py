"""What learns and what does not: the parts, their gradients, and what a step computes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gptneo_jax.model import heads, lora, methods, next_token, quantized_kernel
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import Method
from gptneo_jax.model.parameters import abstract_params
from gptneo_jax.planning import hlo, hlo_costs
from gptneo_jax.sharding import abstract_mesh
from tests.helpers.small_models import NEO, random_params

GPT2 = NEO.replace(model_type="gpt2", attention_pattern=("global",))
KEY = jax.random.key(0)
BATCH = {
  "inputs": np.random.default_rng(0).integers(0, 61, (2, 32)),
  "targets": np.random.default_rng(1).integers(0, 61, (2, 32)),
}


def learnt(parts, seed=3):
  """The parts with factors as they are after training: none is zero."""
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype)
  return parts._replace(learned=jax.tree.map(draw, parts.learned))


def objective_of(config, parts, learned):
  params = lora.combine(parts.frozen, learned)
  made = next_token.loss(
    heads.build(config), params, BATCH, KEY, weight_sum=jnp.float32(64), z_loss=0.0
  )
  return made.objective


@pytest.mark.parametrize("config", [NEO, GPT2, NEO.replace(head="token_classification")])
@pytest.mark.parametrize("targets", ["all", "q,v", "out,c_proj"])
def test_a_new_adapter_changes_nothing(config, targets):
  params = random_params(config)
  parts = methods.split(Method(LoraConfig(rank=3, targets=targets)), config, params, KEY)
  assert {path.split("/")[-1] for path in methods.paths(parts.learned)} <= {
    "lora_a", "lora_b", "kernel", "bias",
  }  # fmt: skip
  assert ("head" in parts.learned) == (config.head != "lm")
  merged = lora.merge(parts.combined())
  jax.tree.map(np.testing.assert_array_equal, merged, params)
  a = next(x for path, x in methods.paths(parts.learned).items() if path.endswith("lora_a"))
  bound = np.prod(a.shape[1:-1]) ** -0.5
  assert 0.8 * bound < np.abs(a).max() <= bound and abs(float(a.mean())) < 0.2 * bound


def test_q_k_and_v_of_gpt2_share_a():
  parts = methods.split(Method(LoraConfig(rank=3)), GPT2, random_params(GPT2), KEY)
  attn = parts.learned["blocks"]["layer_0"]["attn"]
  assert attn["lora_a"].shape == (4, 24, 3) and "lora_a" not in attn["q"]
  combined = parts.combined()["blocks"]["layer_0"]["attn"]
  assert all(combined[name]["lora_a"] is attn["lora_a"] for name in "qkv")
  assert combined["out"]["lora_a"] is attn["out"]["lora_a"] and "lora_a" not in combined


def test_patterns_of_what_does_not_learn():
  params = random_params(NEO)
  parts = methods.split(Method(frozen="^w[tp]e$|ln_"), NEO, params, KEY)
  assert {"wte", "wpe", "ln_f/scale"} <= methods.paths(parts.frozen).keys()
  assert methods.paths(parts.learned).keys() | methods.paths(parts.frozen).keys() == (
    methods.paths(params).keys()
  )
  jax.tree.map(np.testing.assert_array_equal, parts.combined(), params)
  for pattern, message in (("nothing_like_it", "matches nothing"), (".", "matches everything")):
    with pytest.raises(ValueError, match=f"{message} that learns; what learns is .*wte"):
      methods.split(Method(frozen=pattern), NEO, params, KEY)
  with pytest.raises(ValueError, match="no regular expression"):
    Method(frozen="(")


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(rank=0), "lora.rank is 0"),
    (dict(rank=2, targets="q,kk"), "lora.targets has 'kk'"),
    (dict(rank=2, base="int3"), "lora.base is 'int3'"),
    (dict(rank=2, alpha=0.0), "lora.alpha is 0"),
  ],
)
def test_settings_out_of_range(settings, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**settings)


def test_scale():
  assert LoraConfig(rank=8).describe().endswith("scale = alpha / r = 2")
  assert LoraConfig(rank=16, rslora=True).describe().endswith("alpha / sqrt(r) = 4")


@pytest.mark.parametrize("mode, remat", [("int8", "none"), ("int4", "full")])
def test_gradients_over_a_quantized_base_are_those_of_the_dequantized_model(mode, remat):
  config = NEO.replace(num_layers=2, remat=remat)
  method = Method(LoraConfig(rank=3, base=mode))
  parts = learnt(methods.split(method, config, random_params(config), KEY))
  plain = jax.tree.map(
    lambda x: quantized_kernel.dequantize(x) if hasattr(x, "qvalue") else x,
    parts.frozen, is_leaf=lambda x: hasattr(x, "qvalue"),
  )  # fmt: skip
  kernel = parts.frozen["blocks"]["layer_0"]["attn"]["out"]["kernel"]
  kind = {"int8": jnp.int8, "int4": jnp.uint8}[mode]  # of 4 bits two are in a byte
  assert kernel.qvalue.dtype == kind and kernel.scale.dtype == jnp.float32
  over = jax.jit(jax.value_and_grad(lambda x: objective_of(config, parts, x)))
  beside = jax.jit(
    jax.value_and_grad(lambda x: objective_of(config, parts._replace(frozen=plain), x))
  )
  (one, grads), (other, expected) = over(parts.learned), beside(parts.learned)
  np.testing.assert_allclose(one, other, rtol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grads, expected)
  # The merged model is the same one, and the original's kernels are near.
  params = lora.merge(parts.combined())
  merged = methods.Parts(params, {})
  of_merged = jax.jit(lambda x: objective_of(config, merged, x))(params)
  np.testing.assert_allclose(of_merged, one, rtol=1e-5)
  original = random_params(config)["blocks"]["layer_0"]["mlp"]["c_fc"]["kernel"]
  near = quantized_kernel.dequantize(parts.frozen["blocks"]["layer_0"]["mlp"]["c_fc"]["kernel"])
  assert np.abs(near - original).max() < {"int8": 0.006, "int4": 0.09}[mode]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_frozen_costs_no_gradient(dtype):
  """A third of the products is not computed, that with the table of the head included."""
  config = NEO.replace(num_layers=2, hidden_size=128, vocab_size=512, vocab_multiple=1, dtype=dtype)
  flops = {}
  for name, method in (("full", methods.FULL), ("lora", Method(LoraConfig(rank=1)))):
    parts = methods.split(method, config, random_params(config), KEY)
    step = jax.jit(jax.grad(lambda learned, frozen: objective_of(config, frozen, learned)))
    compiled = step.lower(parts.learned, parts).compile()
    flops[name] = hlo_costs.flops(hlo.parse(compiled.as_text()))
  assert flops["lora"] < 0.75 * flops["full"]


def test_layout_of_the_parts_on_a_mesh():
  mesh = abstract_mesh(1, 2, 2, num_devices=4)
  config = NEO.replace(hidden_size=64)
  abstract = abstract_params(heads.build(config), mesh)
  method = Method(LoraConfig(rank=3, base="int4"))
  parts = methods.abstract_split(method, config, abstract, mesh)
  spec = lambda part, path: methods.paths(part)[path].sharding.spec
  q = "blocks/layer_0/attn/q"
  assert spec(parts.learned, f"{q}/lora_a") == PartitionSpec(None, "fsdp", None)
  assert spec(parts.learned, f"{q}/lora_b") == PartitionSpec(None, None, "tensor", None)
  assert spec(parts.frozen, f"{q}/kernel/qvalue") == PartitionSpec(None, "fsdp", "tensor", None)
  # One group of inputs: its scales are everywhere.
  assert spec(parts.frozen, f"{q}/kernel/scale") == PartitionSpec(None, None, "tensor", None)


def test_noise_on_embeddings_is_of_training_and_of_each_sequence():
  """Its size is alpha / sqrt(L · D), L the tokens of the segment; without a key there is none."""
  config = NEO.replace(num_layers=2, neftune_alpha=5.0)
  module, params = heads.build(config), random_params(config)
  segments = np.repeat([[1, 2]], [8, 24], axis=1)
  run = lambda **options: module.apply(
    {"params": params}, BATCH["inputs"][:1], segment_ids_BxT=segments, mutable=["hidden_states"],
    **options,
  )[1]["hidden_states"]["embeddings"][0]  # fmt: skip
  plain, noisy = run(), run(deterministic=False, rngs={"dropout": KEY})
  sizes = np.abs(noisy - plain)[0]
  for tokens, part in ((8, sizes[:8]), (24, sizes[8:])):
    bound = 5.0 / np.sqrt(tokens * 24)
    assert 0.95 * bound < part.max() <= bound * 1.0001
    np.testing.assert_allclose(part.mean(), bound / 2, rtol=0.1)


def test_dropout_before_factors_touches_nothing_else():
  config = NEO.replace(num_layers=2, lora_dropout=0.5)
  module = heads.build(config)
  parts = methods.split(Method(LoraConfig(rank=3)), config, random_params(config), KEY)
  run = jax.jit(
    lambda parts, key: module.apply(
      {"params": parts.combined()}, BATCH["inputs"], deterministic=False, rngs={"dropout": key}
    )
  )
  keys = [jax.random.key(n) for n in (1, 2)]
  # New factors add nothing, whatever is dropped before them.
  fresh = [run(parts, key) for key in keys]
  np.testing.assert_array_equal(*fresh)
  after = [run(learnt(parts), key) for key in keys]
  assert np.abs(after[0] - after[1]).max() > 1e-3
