"""config.json both ways: every form of it, and the settings that are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.interop import hf_config
from tests.helpers import hf_folders
from tests.helpers.conversion import error

FAMILIES = ("gpt_neo", "gpt2")


def layers_of(**fields) -> tuple[str, ...]:
  return hf_config.from_hf(hf_folders.config(**fields), "config.json").attention_layers


def test_attention_types_in_every_shape():
  g, l = "global", "local"  # noqa: E741
  assert layers_of(attention_types=[[[g, l], 2]]) == (g, l, g, l)
  assert layers_of(attention_types=[[[g], 1], [[l], 3]]) == (g, l, l, l)
  assert layers_of(attention_types=[[[g, l], 1], [[g, l], 1]]) == (g, l, g, l)
  assert layers_of(attention_types=[[[g], 4]]) == (g,) * 4
  assert layers_of(attention_types=None, attention_layers=[l, l, g, g]) == (l, l, g, g)
  assert layers_of(attention_types=None, num_layers=24) == (g, l) * 12


@given(st.lists(st.sampled_from(["global", "local"]), min_size=1, max_size=12))
def test_any_list_of_layers_survives(layers):
  fields = hf_folders.config(
    num_layers=len(layers),
    attention_types=[[[kind], 1] for kind in layers],
    attention_layers=layers,
  )
  config = hf_config.from_hf(fields, "config.json")
  assert list(config.attention_layers) == layers
  assert config.num_layers % config.period == 0
  back = hf_config.to_hf(config, {}, "5")
  assert hf_config.from_hf(back, "config.json") == config
  assert hf_config.to_hf(config, fields, "5")["attention_types"] == fields["attention_types"]


def test_what_a_config_leaves_out_is_hugging_faces_default():
  # The hub's config of the 125M model, but for its token ids and summary settings.
  config = hf_config.from_hf(
    {
      "activation_function": "gelu_new",
      "architectures": ["GPTNeoForCausalLM"],
      "attention_dropout": 0,
      "attention_types": [[["global", "local"], 6]],
      "embed_dropout": 0,
      "gradient_checkpointing": False,
      "hidden_size": 768,
      "initializer_range": 0.02,
      "intermediate_size": None,
      "layer_norm_epsilon": 1e-05,
      "max_position_embeddings": 2048,
      "model_type": "gpt_neo",
      "num_heads": 12,
      "num_layers": 12,
      "resid_dropout": 0,
      "vocab_size": 50257,
      "window_size": 256,
    },
    "config.json",
  )
  assert config.num_params() == 125_198_592
  assert config.tie_word_embeddings
  assert hf_config.from_hf({"model_type": "gpt_neo"}, "x").num_params() == 1_315_575_808
  gpt2 = hf_config.from_hf({"model_type": "gpt2"}, "x")
  assert gpt2.num_params() == 124_439_808
  assert (gpt2.resid_dropout, gpt2.max_position_embeddings) == (0.1, 1024)


def test_aliases():
  fields = hf_folders.config()
  del fields["num_layers"], fields["num_heads"]
  fields |= {"num_hidden_layers": 4, "num_attention_heads": 4}
  assert hf_config.from_hf(fields, "x") == hf_config.from_hf(hf_folders.config(), "x")
  message = error(hf_config.from_hf, hf_folders.config(num_hidden_layers=6), "config.json")
  assert message == "config.json: num_layers=4 and num_hidden_layers=6 disagree"


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"model_type": "llama"}, "model_type is 'llama'; supported are gpt2 and gpt_neo"),
    ({"model_type": None}, "model_type is None"),
    ({"activation_function": "prelu"}, "activation_function is 'prelu'; it must be one of gelu_ne"),
    ({"activation_function": 3}, "activation_function is 3, which is not of type str"),
    ({"add_cross_attention": True}, "add_cross_attention is True; only False is supported"),
    ({"architectures": ["GPTNeoForSomething"]}, "architectures names GPTNeoForSomething"),
    ({"num_layers": 3}, "attention_types has 4 layers, and num_layers is 3"),
    ({"attention_types": "global"}, "attention_types is 'global'"),
    ({"attention_types": [[["sparse"], 4]]}, "'sparse'"),
    ({"attention_types": [[["global"], 10**30]]}, "attention_types is "),
    ({"attention_types": [[["global"], 4.0]]}, "attention_types is "),
    ({"attention_types": [[[["global"]], 4]]}, "attention_types is "),
    ({"attention_layers": 4}, "attention_layers is 4, not a list of kinds"),
    ({"architectures": [3]}, "architectures is [3], not a list of names"),
    ({"architectures": {"a": 1}}, "architectures is {'a': 1}, not a list of names"),
    ({"model_type": ["gpt_neo"]}, "model_type is ['gpt_neo']"),
    ({"attention_layers": ["global"] * 4}, "attention_layers is not what attention_types"),
    ({"num_heads": 5}, "hidden_size 24 is not divisible by model.num_heads 5"),
    ({"hidden_size": "24"}, "hidden_size is '24'"),
    ({"hidden_size": 24.5}, "hidden_size is 24.5, which is not an integer"),
    ({"quantization_config": {"bits": 8}}, "quantization_config is {'bits': 8}"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
  ],
)
def test_configs_that_are_refused(fields, words):
  message = error(hf_config.from_hf, hf_folders.config(**fields), "some/config.json")
  assert message.startswith("some/config.json: ")
  assert words in message


@pytest.mark.parametrize(
  "theirs, ours", [("gelu_fast", "gelu_new"), ("gelu_python", "gelu"), ("relu", "relu")]
)
def test_names_of_one_function_are_one_function_and_come_back(theirs, ours):
  for family in FAMILIES:
    fields = hf_folders.config(family, activation_function=theirs)
    config = hf_config.from_hf(fields, "config.json")
    assert config.activation_function == ours
    assert hf_config.to_hf(config, fields, "5")["activation_function"] == theirs
    assert hf_config.to_hf(config, {}, "5")["activation_function"] == ours
    changed = config.replace(activation_function="silu")  # trained on with another
    assert hf_config.to_hf(changed, fields, "5")["activation_function"] == "silu"


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
def test_scales_of_gpt2s_attention(weights, by_layer):
  settings = {
    "scale_attn_weights": weights,
    "scale_attn_by_inverse_layer_idx": by_layer,
    "reorder_and_upcast_attn": by_layer,  # scores are float32 here in any case
  }
  config = hf_config.from_hf(hf_folders.config("gpt2", **settings), "config.json")
  assert config.attention_scale == pytest.approx(6**-0.5 if weights else 1.0)
  assert config.scale_attn_by_inverse_layer_idx == by_layer
  assert settings.items() <= hf_config.to_hf(config, settings, "5").items()
