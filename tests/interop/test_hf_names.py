"""Names of stored tensors: prefixes, wrappers, old masks, and tensors outside the model."""

import json

import numpy as np
import pytest

from gptneo_jax import interop
from tests.helpers import hf_folders
from tests.helpers.conversion import error, there_and_back


def test_a_decoder_saved_alone_and_old_masks(tmp_path):
  weights = hf_folders.tensors()
  stored = {name.removeprefix("transformer."): array for name, array in weights.items()}
  stored["h.0.attn.attention.bias"] = np.ones((1, 1, 32, 32), np.uint8)
  stored["h.2.attn.attention.bias"] = np.ones((1, 1, 32, 32), np.bool_)
  stored["h.0.attn.attention.masked_bias"] = np.full((), -1e9, np.float32)
  fields = hf_folders.config(architectures=["GPTNeoModel"])
  name = hf_folders.save(tmp_path / "hf", fields, stored)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)


def test_gpt2s_old_masks(tmp_path):
  weights = hf_folders.tensors("gpt2")
  masks = {"transformer.h.1.attn.bias": np.ones((1, 1, 32, 32), np.float32)}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config("gpt2"), weights | masks)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)


WRAPPED = {
  "module": lambda name: f"module.{name}",
  "several": lambda name: f"module._orig_mod.model.{name}",
  "within": lambda name: name.replace(".h.1.", ".h.1._orig_mod.").replace(".mlp.", ".module.mlp."),
  "renamed": lambda name: name.replace("transformer.", "model."),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_what_wrappers_put_into_names_is_taken_off_and_said(tmp_path, wrapped, caplog):
  weights = hf_folders.tensors()
  stored = {wrapped(name): x for name, x in weights.items()}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), stored)
  opened = interop.open_hf(name)
  np.testing.assert_array_equal(
    opened.params["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"].load()[0],
    weights["transformer.h.1.mlp.c_fc.weight"].T,
  )
  np.testing.assert_array_equal(opened.params["wte"].load(), weights["transformer.wte.weight"])
  assert "parts that a wrapper added to the names are removed" in caplog.text


def test_tensors_beside_the_model(tmp_path):
  """Named with the flag that leaves them out, alone and in front of a prefix."""
  weights = hf_folders.tensors()
  beside = {
    "v_head.summary.weight": np.ones((1, 24), np.float32),
    "v_head.summary.bias": np.ones(1, np.float32),
    "lm_head.bias": np.ones(61, np.float32),
  }
  fields = hf_folders.config(architectures=["GPTNeoForCausalLMWithValueHead"])
  name = hf_folders.save(tmp_path / "hf", fields, weights | beside)
  message = error(interop.open_hf, name, ignore=["v_head.*"])
  assert "holds lm_head.bias, which a gpt_neo with 4 layers does not have" in message
  assert "--ignore 'lm_head.bias'` leaves it out" in message
  message = error(interop.open_hf, name, ignore=["lm_head.bias"])
  assert "--ignore 'v_head.*'` leaves it out" in message
  message = error(interop.open_hf, name, ignore=["v_haed.*"])
  assert "--ignore 'v_haed.*' matches none of the tensors, such as lm_head.bias" in message
  ignore = ["lm_head.bias", "v_head.*"]
  hf_folders.assert_same(there_and_back(tmp_path, name, ignore=ignore), weights)
  back = json.loads((tmp_path / "back/config.json").read_text())
  assert back["architectures"] == ["GPTNeoForCausalLM"]
  wrapped = {f"pretrained_model.{name}": x for name, x in weights.items()} | beside
  name = hf_folders.save(tmp_path / "wrapped", fields, wrapped)
  message = error(interop.open_hf, name, ignore=["v_head.*"])
  assert "begin with 'pretrained_model.', but lm_head.bias does not" in message
  averages = {f"ema.{name}": x for name, x in weights.items()}
  twice = hf_folders.save(tmp_path / "twice", fields, averages | weights)
  assert "--ignore 'ema.*'` leaves it out" in error(interop.open_hf, twice)
  assert interop.open_hf(twice, ignore=["ema.*"]).config.num_layers == 4
  found = interop.open_hf(name, ignore=ignore).params["ln_f"]["bias"].load()
  np.testing.assert_array_equal(found, weights["transformer.ln_f.bias"])
