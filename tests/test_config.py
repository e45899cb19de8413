"""The configuration: exact counts, published FLOPs, clear refusals, and the file it is kept in."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from gptneo_jax.checkpoints.folder import load_config, save_config
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.model.decoder import Decoder

# Tied head counted once. GPT-Neo: EleutherAI's released models; GPT-2: openai/gpt-2 and distilgpt2.
PARAMETERS = {
  "neo_125m": 125_198_592,
  "neo_350m": 355_798_016,
  "neo_1p3b": 1_315_575_808,
  "neo_2p7b": 2_651_307_520,
  "gpt2_small": 124_439_808,
  "gpt2_medium": 354_823_168,
  "gpt2_large": 774_030_080,
  "gpt2_xl": 1_557_611_200,
  "distilgpt2": 81_912_576,
}


def leaf_sizes(config: ModelConfig) -> int:
  """Parameters that the decoder really makes, counted without making them."""
  ids_BxT = jnp.zeros((1, 8), jnp.int32)
  params = jax.eval_shape(Decoder(config).init, jax.random.key(0), ids_BxT)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(params)))


def test_every_preset_has_a_published_count():
  assert set(PRESETS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_parameters(name):
  assert PRESETS[name].num_params() == PARAMETERS[name]
  assert leaf_sizes(PRESETS[name]) == PARAMETERS[name]


@pytest.mark.parametrize("model_type", ["gpt_neo", "gpt2"])
def test_untied_and_odd_sizes_count_the_leaves(model_type):
  config = ModelConfig(
    model_type=model_type, vocab_size=37, max_position_embeddings=19, hidden_size=15, num_layers=3,
    num_heads=3, intermediate_size=22, attention_pattern=("global", "global", "local"),
    tie_word_embeddings=False,
  )  # fmt: skip
  assert config.num_params() == leaf_sizes(config)


def test_padding_of_the_vocabulary_is_not_counted():
  config = PRESETS["neo_125m"].replace(vocab_multiple=128)
  assert config.padded_vocab_size == 50304
  assert config.num_params() == PARAMETERS["neo_125m"]
  assert leaf_sizes(config) == PARAMETERS["neo_125m"] + 36_096


# GFLOP per token at 2048, forward and backward: 6N, full square, exact (three digits).
@pytest.mark.parametrize(
  "name, matrices, full_square, exact",
  [
    ("neo_125m", 0.742, 0.226, 0.070),
    ("neo_350m", 2.12, 0.604, 0.186),
    ("neo_1p3b", 7.87, 1.21, 0.373),
    ("neo_2p7b", 15.9, 2.01, 0.622),
  ],
)
def test_flops_of_both_conventions(name, matrices, full_square, exact):
  config = PRESETS[name]
  n = PARAMETERS[name] - 2048 * config.hidden_size
  assert 6 * n / 1e9 == pytest.approx(matrices, rel=5e-3)
  square = config.flops_per_token(2048, attention="full_square") - 6 * n
  assert square == 12 * config.num_layers * config.hidden_size * 2048
  assert square / 1e9 == pytest.approx(full_square, rel=5e-3)
  assert (config.flops_per_token(2048) - 6 * n) / 1e9 == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("T", [1, 6, 7, 8, 50])
def test_exact_flops_count_the_visible_keys(T):
  config = ModelConfig(hidden_size=8, num_heads=2, num_layers=2, window_size=7, vocab_size=11,
                       max_position_embeddings=50)  # fmt: skip
  seen = [sum(j <= i for j in range(T)) for i in range(T)]
  near = [sum(i - 7 < j <= i for j in range(T)) for i in range(T)]
  n = config.num_params() - 50 * 8
  expected = 6 * n + 12 * 8 * (sum(seen) + sum(near)) / T
  assert config.flops_per_token(T) == pytest.approx(expected, rel=1e-12)


def test_flops_count_an_untied_head_once():
  tied = PRESETS["neo_125m"]
  untied = tied.replace(tie_word_embeddings=False)
  assert untied.flops_per_token(2048) == tied.flops_per_token(2048)
  with pytest.raises(ValueError, match="full_square"):
    tied.flops_per_token(2048, attention="full")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"num_heads": 7}, "hidden_size 768 is not divisible by model.num_heads 7"),
    ({"num_layers": 3}, "num_layers 3 is not a multiple of the 2 layers"),
    ({"attention_pattern": ("global", "lokal")}, "'global' and 'local' only"),
    ({"attention_pattern": ()}, "'global' and 'local' only"),
    ({"window_size": 0}, "window_size is 0; it must be at least 1"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"num_layers": 0}, "num_layers is 0"),
    ({"vocab_multiple": 0}, "vocab_multiple is 0"),
    ({"intermediate_size": -1}, "intermediate_size is negative"),
    ({"attention_dropout": 1.0}, r"attention_dropout is 1.0; it must lie in \[0, 1\)"),
    ({"resid_dropout": -0.1}, r"resid_dropout is -0.1"),
    ({"remat": "some"}, "remat is 'some'; it must be one of none, dots, full"),
    ({"dtype": "float8"}, "dtype is 'float8'; it must be one of float32, bfloat16, float16"),
    ({"model_type": "gptj"}, "one of gpt_neo, gpt2"),
    ({"initializer": "normal"}, "one of mesh_tf, hf"),
    ({"head": "multiple_choice"}, "model.head is 'multiple_choice'; it must be one of lm, "),
    ({"head": "double_heads"}, "'double_heads' is GPT-2's"),
    ({"activation_function": "gelu2"}, "activation_function is 'gelu2'; it must be one of gelu_n"),
    ({"scale_attn_weights": False}, "GPT-Neo does not scale attention"),
    ({"scale_attn_by_inverse_layer_idx": True}, "GPT-Neo does not scale attention"),
    ({"num_labels": 0}, "num_labels is 0"),
    ({"num_labels": 3, "id2label": ("a", "b")}, "id2label names 2 labels, and .* is 3"),
    ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
    ({"pad_token_id": -2}, "pad_token_id is -2; -1 means none"),
    ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
  ],
)
def test_inconsistent_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    ModelConfig(**changes)


def test_unknown_key_names_the_nearest():
  with pytest.raises(ValueError, match="'windw_size'; did you mean 'window_size'"):
    ModelConfig.from_dict({"windw_size": 4})
  with pytest.raises(ValueError, match=r"unknown model setting 'zzzz'$"):
    ModelConfig.from_dict({"zzzz": 4})


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_a_file(name, tmp_path):
  config = PRESETS[name].replace(
    window_size=17, vocab_multiple=64, resid_dropout=0.25, head="token_classification",
    id2label=("O", "B"), pad_token_id=0,
  )  # fmt: skip
  save_config(tmp_path, config)
  assert load_config(tmp_path) == config
  assert hash(load_config(tmp_path)) == hash(config)  # configs key jit caches
  assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_foreign_folders_are_refused(tmp_path):
  with pytest.raises(UserError, match=r"holds no config\.json"):
    load_config(tmp_path)
  path = tmp_path / "config.json"
  path.write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    load_config(tmp_path)
  path.write_text('{"model_type": "gpt_neo"}')
  with pytest.raises(UserError, match="not written by gptneo_jax"):
    load_config(tmp_path)


def test_differences_name_what_the_model_is_and_not_how_it_runs():
  config = PRESETS["neo_125m"]
  assert config.differences(config) == []
  runs = config.replace(
    dtype="bfloat16", remat="full", attention_impl="reference", initializer="hf",
    initializer_range=0.1, vocab_multiple=128, resid_dropout=0.1, intermediate_size=3072,
  )  # fmt: skip
  assert config.differences(runs) == []
  gpt2 = PRESETS["gpt2_small"]  # which has no local layer
  assert gpt2.differences(gpt2.replace(window_size=7)) == []
  assert config.differences(config.replace(hidden_size=384)) == ["hidden_size: 768 != 384"]
  assert config.differences(config.replace(window_size=255, num_heads=6)) == [
    "num_heads: 12 != 6",
    "window_size: 256 != 255",
  ]


def test_derived_properties():
  neo, gpt2 = PRESETS["neo_1p3b"], PRESETS["gpt2_small"]
  assert neo.attention_layers == ("global", "local") * 12
  assert (neo.head_dim, neo.mlp_size, neo.attention_scale, neo.qkv_bias) == (128, 8192, 1.0, False)
  assert gpt2.attention_layers == ("global",) * 12
  assert (gpt2.head_dim, gpt2.attention_scale, gpt2.qkv_bias) == (64, 0.125, True)
