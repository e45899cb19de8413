"""The decoder by itself: what a position may depend on, how it starts, and how it is run."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax import axes
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.model.decoder import Decoder, init_stddev
from gptneo_jax.model.losses import token_losses

TINY = ModelConfig(
  vocab_size=53, max_position_embeddings=32, hidden_size=16, num_layers=4, num_heads=2,
  window_size=4,
)  # fmt: skip


def random_params(config, seed=0, std=0.2):
  """Parameters with nothing at 0 or 1; on the real shapes, made without compiling init."""
  ids_BxT = jnp.zeros((1, 4), jnp.int32)
  boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), ids_BxT)["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(std * rng.standard_normal(x.shape), x.dtype), nn.unbox(boxed)
  )


def random_ids(config, B=2, T=12, seed=0):
  return np.random.default_rng(seed).integers(0, config.vocab_size, (B, T)).astype(np.int32)


def apply(config, params, ids_BxT, method="logits", **options):
  """One compiled forward pass."""
  run = lambda params, options: Decoder(config).apply(
    {"params": params}, ids_BxT, method=method, **options
  )
  return jax.jit(run)(params, options)


def loss_and_gradients(config, params, ids_BxT, dropout_key=None):
  def loss(params, key):
    logits_BxTxV = Decoder(config).apply(
      {"params": params},
      ids_BxT,
      deterministic=key is None,
      rngs=None if key is None else {"dropout": key},
      method="logits",
    )
    return token_losses(logits_BxTxV[:, :-1], ids_BxT[:, 1:]).nll_BxT.mean()

  return jax.jit(jax.value_and_grad(loss))(params, dropout_key)


# --- what a position depends on ----------------------------------------------------------------


@pytest.mark.parametrize(
  "pattern, layers, seen_by_9",
  [
    (("local",), 1, range(6, 10)),  # window 4: 6, 7, 8 and itself
    (("local",), 2, range(3, 10)),
    (("global",), 1, range(10)),
    (("global", "local"), 2, range(10)),
    (("local", "global"), 2, range(10)),
  ],
)
def test_causality_and_locality(pattern, layers, seen_by_9):
  """Which positions have any gradient into position 9's logits: exactly those that it may see."""
  config = TINY.replace(attention_pattern=pattern, num_layers=layers)
  params, ids_BxT = random_params(config), random_ids(config, B=1, T=14)

  def logits_of_9(wpe):
    logits = Decoder(config).apply({"params": {**params, "wpe": wpe}}, ids_BxT, method="logits")
    return (logits[0, 9] * jnp.sin(jnp.arange(config.vocab_size))).sum()

  gradient_PxD = np.asarray(jax.jit(jax.grad(logits_of_9))(params["wpe"]))
  (seen,) = np.nonzero(np.abs(gradient_PxD).max(-1))
  assert seen.tolist() == list(seen_by_9)


def test_packed_documents_equal_separate_ones():
  """With segment ids and positions reset, a row of documents is the documents."""
  config, lengths = TINY, [5, 1, 9]
  params, ids_BxT = random_params(config), random_ids(config, B=1, T=sum(lengths))
  segments_BxT = np.repeat(np.arange(len(lengths)), lengths)[None]
  positions_BxT = np.concatenate([np.arange(n) for n in lengths])[None]
  packed = apply(config, params, ids_BxT, positions_BxT=positions_BxT, segment_ids_BxT=segments_BxT)
  start = 0
  for n in lengths:
    alone = apply(config, params, ids_BxT[:, start : start + n])
    np.testing.assert_allclose(packed[:, start : start + n], alone, atol=2e-5)
    start += n
  unmasked = apply(config, params, ids_BxT, positions_BxT=positions_BxT)
  assert np.abs(unmasked[:, 5:] - packed[:, 5:]).max() > 0.02


def test_more_tokens_than_positions_is_an_error():
  with pytest.raises(ValueError, match="33 tokens, and the model has 32 positions"):
    Decoder(TINY).apply({"params": random_params(TINY)}, np.zeros((1, 33), np.int32))


# --- parameters and their start ----------------------------------------------------------------


def boxed_params(config):
  ids_BxT = jnp.zeros((1, 4), jnp.int32)
  return jax.eval_shape(Decoder(config).init, jax.random.key(0), ids_BxT)["params"]


def test_parameters_are_stacked_by_place_in_the_period():
  config = TINY.replace(attention_pattern=("global", "global", "local"), num_layers=6)
  params = nn.unbox(boxed_params(config))
  assert set(params) == {"wte", "wpe", "ln_f", "blocks"}
  assert set(params["blocks"]) == {"layer_0", "layer_1", "layer_2"}
  layer = params["blocks"]["layer_2"]
  assert layer["attn"]["q"]["kernel"].shape == (2, 16, 2, 8)
  assert layer["attn"]["out"]["kernel"].shape == (2, 2, 8, 16)
  assert layer["mlp"]["c_fc"]["kernel"].shape == (2, 16, 64)
  assert set(layer["attn"]["q"]) == {"kernel"}
  assert set(layer["attn"]["out"]) == {"kernel", "bias"}
  gpt2 = config.replace(model_type="gpt2", tie_word_embeddings=False)
  params = nn.unbox(boxed_params(gpt2))
  assert params["blocks"]["layer_0"]["attn"]["q"]["bias"].shape == (2, 2, 8)
  assert params["lm_head"].shape == params["wte"].shape == (53, 16)


def test_every_parameter_names_all_its_axes():
  is_box = lambda leaf: isinstance(leaf, nn.Partitioned)
  for path, leaf in jax.tree_util.tree_leaves_with_path(boxed_params(TINY), is_leaf=is_box):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    assert len(leaf.names) == len(leaf.value.shape), name
    assert None not in leaf.names, name
    assert (leaf.names[0] == axes.LAYERS) == name.startswith("blocks"), name


def test_scanned_layers_are_applied_in_order():
  """Layer i is place i % period, repeat i // period: permuting a tree's repeats shows it."""
  config = TINY.replace(attention_pattern=("local",), num_layers=2)
  params, ids_BxT = random_params(config), random_ids(config)
  take = lambda i: {
    **params, "blocks": jax.tree.map(lambda x: x[i : i + 1], params["blocks"]),
  }  # fmt: skip
  one = config.replace(num_layers=1)
  pattern = config.replace(attention_pattern=("local", "local"))
  unrolled = {f"layer_{i}": take(i)["blocks"]["layer_0"] for i in range(2)}
  scanned = apply(config, params, ids_BxT)
  straight = apply(pattern, {**params, "blocks": unrolled}, ids_BxT)
  np.testing.assert_allclose(scanned, straight, atol=2e-5)
  assert np.abs(apply(one, take(1), ids_BxT) - scanned).max() > 0.01


def initialise(config):
  init = jax.jit(Decoder(config).init)
  return nn.unbox(init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32)))["params"]


@pytest.mark.parametrize("model_type", ["gpt_neo", "gpt2"])
@pytest.mark.parametrize("initializer", ["mesh_tf", "hf"])
def test_initial_deviations(model_type, initializer):
  """The table of the original, and of transformers, at the size of this model."""
  D, L, K = 128, 4, 32
  config = ModelConfig(
    model_type=model_type, initializer=initializer, vocab_size=300, hidden_size=D, num_layers=L,
    num_heads=4, max_position_embeddings=200, tie_word_embeddings=False,
  )  # fmt: skip
  neo, residual = model_type == "gpt_neo", 0.02 / (2 * L) ** 0.5
  expected = {
    "mesh_tf": {
      "wte": 0.02, "lm_head": 0.02, "wpe": 0.01, "q": D**-0.5 * (K**-0.5 if neo else 1),
      "k": D**-0.5, "v": D**-0.5, "out": D**-0.5, "c_fc": 0.02, "c_proj": 0.02 / L**0.5,
    },
    "hf": {
      **dict.fromkeys(("wte", "lm_head", "wpe", "q", "k", "v", "c_fc"), 0.02),
      **dict.fromkeys(("out", "c_proj"), 0.02 if neo else residual),
    },
  }[initializer]  # fmt: skip
  params = initialise(config)
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    names = [key.key for key in path]
    if names[-1] in ("scale", "bias"):
      assert (np.asarray(x) == (names[-1] == "scale")).all(), names
      continue
    name = names[-2] if names[-1] == "kernel" else names[-1]
    assert np.std(x) == pytest.approx(expected[name], rel=0.03), names
    assert abs(np.mean(x)) < 0.02 * expected[name], names
  # Repeats of the scan, and q and k, do not share their numbers.
  layer = params["blocks"]["layer_0"]["attn"]
  assert np.abs(layer["q"]["kernel"][0] - layer["q"]["kernel"][1]).max() > 0
  assert (
    abs(np.corrcoef(np.ravel(layer["q"]["kernel"]), np.ravel(layer["k"]["kernel"]))[0, 1]) < 0.05
  )


@pytest.mark.parametrize(
  "preset, initializer, expected",
  [
    ("neo_125m", "mesh_tf", 1.0),
    ("gpt2_small", "mesh_tf", 1.0),
    ("neo_125m", "hf", 2.46),
    ("neo_2p7b", "hf", 11.59),
    ("neo_2p7b", "mesh_tf", 1.0),
  ],
)
def test_attention_logits_at_the_start(preset, initializer, expected):
  """Deviation of scaled q·k for inputs of unit variance, one head at the real width."""
  config = PRESETS[preset].replace(initializer=initializer)
  D, K = config.hidden_size, config.head_dim
  rng = np.random.default_rng(0)
  x_TxD = rng.standard_normal((400, D))
  q_TxK, k_TxK = (
    x_TxD @ (init_stddev(config, name) * rng.standard_normal((D, K))) for name in ("q", "k")
  )
  assert np.std(config.attention_scale * q_TxK @ k_TxK.T) == pytest.approx(expected, rel=0.1)


def test_attention_logits_of_an_initialised_layer():
  """The same, from the parameters that init makes at the width of 125M."""
  config = PRESETS["neo_125m"].replace(
    num_layers=1, attention_pattern=("global",), vocab_size=8, max_position_embeddings=8
  )
  params = initialise(config)
  attn = params["blocks"]["layer_0"]["attn"]
  x_TxD = jax.random.normal(jax.random.key(1), (64, 768))
  q, k = (jnp.einsum("TD,DHK->HTK", x_TxD, attn[name]["kernel"][0]) for name in ("q", "k"))
  assert float(jnp.einsum("HTK,HSK->HTS", q, k).std()) == pytest.approx(1.0, rel=0.05)


# --- how it is run -----------------------------------------------------------------------------


def assert_trees_close(got, expected, tolerance):
  for (path, g), e in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
  ):
    error = np.abs(np.asarray(g) - np.asarray(e)).max()
    assert error <= tolerance * np.abs(np.asarray(e)).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("remat, dropout", [("dots", 0.0), ("full", 0.2)])
def test_remat_changes_nothing(remat, dropout):
  """Also with dropout: what is computed again drops the same entries."""
  config = TINY.replace(embed_dropout=dropout, attention_dropout=dropout, resid_dropout=dropout)
  if not dropout:  # layers that know their number
    config = config.replace(
      model_type="gpt2", attention_pattern=("global",), scale_attn_by_inverse_layer_idx=True
    )
  params, ids_BxT = random_params(config), random_ids(config)
  key = jax.random.key(0) if dropout else None
  loss, gradients = loss_and_gradients(config, params, ids_BxT, key)
  got = loss_and_gradients(config.replace(remat=remat), params, ids_BxT, key)
  assert float(got[0]) == pytest.approx(float(loss), rel=1e-6)
  if config.qkv_bias:
    for tree in (got[1], gradients):  # the same is added to every score: rounding is all there is
      del tree["blocks"]["layer_0"]["attn"]["k"]["bias"]
  assert_trees_close(got[1], gradients, 5e-6)


def test_remat_computes_again_what_it_says():
  """Products of weight matrices and attention again for 'full', for 'dots' none of them."""
  config = TINY.replace(hidden_size=64, max_position_embeddings=192)  # for more than one block
  params, ids_BxT = random_params(config), random_ids(config, T=192)

  def flops(remat):
    model = Decoder(config.replace(remat=remat))
    gradient = jax.grad(lambda params: model.apply({"params": params}, ids_BxT).sum())
    return jax.jit(gradient).lower(params).compile().cost_analysis()["flops"]

  none, dots, full = map(flops, ("none", "dots", "full"))
  print(f"FLOPs relative to none: dots {dots / none:.3f}, full {full / none:.3f}")
  assert dots < 1.06 * none
  assert full > 1.2 * none


@pytest.mark.parametrize("place", ["embed_dropout", "attention_dropout", "resid_dropout"])
def test_dropout(place):
  config = TINY.replace(**{place: 0.3})
  params, ids_BxT = random_params(config), random_ids(config)

  @jax.jit
  def logits(key):
    rngs = {"dropout": key}
    return Decoder(config).apply(
      {"params": params}, ids_BxT, deterministic=False, rngs=rngs, method="logits"
    )

  a, b = jax.random.split(jax.random.key(0))
  np.testing.assert_array_equal(logits(a), logits(a))
  assert np.abs(logits(a) - logits(b)).max() > 0.01
  plain = apply(config, params, ids_BxT)  # off unless asked for
  np.testing.assert_array_equal(plain, apply(TINY, params, ids_BxT))


def test_layers_drop_different_entries():
  """Each repeat of the scan has its own dropout."""
  config = ModelConfig(
    vocab_size=5, hidden_size=16, num_heads=2, num_layers=2, attention_pattern=("global",),
    max_position_embeddings=64, resid_dropout=0.5,
  )  # fmt: skip
  params = jax.tree.map(jnp.zeros_like, random_params(config))
  block = params["blocks"]["layer_0"]
  block["attn"]["out"]["bias"] += jnp.array([1.0, 8.0])[:, None]  # what each layer adds
  params["ln_f"]["scale"] += 1.0
  ids_BxT = np.zeros((1, 64), np.int32)
  x_BxTxD = Decoder(config).apply(
    {"params": params}, ids_BxT, deterministic=False, rngs={"dropout": jax.random.key(0)}
  )
  # Sums of 0 or 2 and 0 or 16: four different values a row, if the layers do not drop alike.
  distinct = [len(np.unique(np.round(row, 4))) for row in np.asarray(x_BxTxD[0])]
  assert np.mean(distinct) > 3


def test_bfloat16_compute_gives_float32_logits():
  config = TINY.replace(dtype="bfloat16")
  params, ids_BxT = random_params(TINY, std=0.1), random_ids(TINY)
  hidden = jax.eval_shape(lambda: Decoder(config).apply({"params": params}, ids_BxT))
  logits = apply(config, params, ids_BxT)
  exact = np.asarray(apply(TINY, params, ids_BxT))
  assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
  assert 0 < np.abs(logits - exact).max() < 0.03 * np.abs(exact).max()
  stored = config.replace(param_dtype="bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(random_params(stored))} == {"bfloat16"}


def test_attention_backends_agree_in_the_model():
  params, ids_BxT = random_params(TINY), random_ids(TINY, T=23)
  got = apply(TINY, params, ids_BxT)
  expected = apply(TINY.replace(attention_impl="reference"), params, ids_BxT)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def compiled_size(num_layers):
  """HLO instructions of value_and_grad, and the seconds it took to lower and compile."""
  config = TINY.replace(num_layers=num_layers)
  ids_BxT = random_ids(config)

  def loss(params):
    logits_BxTxV = Decoder(config).apply({"params": params}, ids_BxT, method="logits")
    return token_losses(logits_BxTxV[:, :-1], ids_BxT[:, 1:]).nll_BxT.mean()

  params = nn.unbox(boxed_params(config))
  start = time.perf_counter()
  compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
  seconds = time.perf_counter() - start
  return sum(" = " in line for line in compiled.as_text().splitlines()), seconds


def test_depth_does_not_grow_the_program(record_property):
  """What is compiled has the same size at 4 layers and at 32; the times are reported only."""
  instructions, seconds = zip(*(compiled_size(layers) for layers in (4, 32)))
  print(f"4 and 32 layers: {instructions} instructions, {seconds[0]:.2f} and {seconds[1]:.2f} s")
  record_property("seconds", seconds)
  assert instructions[0] > 100
  assert instructions[1] <= 1.05 * instructions[0]
