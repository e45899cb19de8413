"""PEFT's files without PEFT: written and read again, loaded into a model, refused if wrong."""

import json

import jax
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax.errors import UserError
from gptneo_jax.interop import peft_files
from gptneo_jax.interop.safetensors_file import open_safetensors, write_safetensors
from gptneo_jax.model import lora
from tests.helpers.small_adapters import CONFIG, draw, small_adapter
from tests.helpers.small_models import random_params


@pytest.fixture
def adapter():
  return small_adapter()


def test_written_and_read_again(adapter, tmp_path):
  config_with_gaps = {"layers_to_transform": [1, 3]}
  peft_files.write_adapter(tmp_path, CONFIG, adapter, base="somewhere", dropout=0.1)
  settings = json.loads((tmp_path / peft_files.CONFIG_FILE).read_text())
  assert settings["base_model_name_or_path"] == "somewhere"
  # `out` is in half of the layers only, which is an error unless the settings say so.
  with pytest.raises(UserError, match=r"lacks .*h\.0\.attn\.attention\.out_proj\.lora_A"):
    peft_files.read_adapter(tmp_path, CONFIG)
  (tmp_path / peft_files.CONFIG_FILE).write_text(json.dumps({**settings, **config_with_gaps}))
  again = peft_files.read_adapter(tmp_path, CONFIG)
  expected, found = (
    lora.merged(random_params(CONFIG, seed=9), which) for which in (adapter, again)
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


@pytest.fixture
def folder(tmp_path):
  scale = np.full(2, 1.5, np.float32)
  factors = {"lora_a": draw(2, 16, 3), "lora_b": draw(2, 3, 2, 8), "lora_scale": scale}
  places = {f"layer_{j}": {"attn": {"q": factors}} for j in range(2)}
  peft_files.write_adapter(tmp_path, CONFIG, {"blocks": places})
  return tmp_path


def change_tensors(folder, change):
  path = folder / peft_files.WEIGHTS_FILE
  tensors = {name: tensor.read() for name, tensor in open_safetensors(path).items()}
  change(tensors)
  specs = {name: (x.shape, x.dtype) for name, x in tensors.items()}
  write_safetensors(path, specs, tensors.values())


NAME = "base_model.model.transformer.h.1.attn.attention.q_proj.lora_"


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop(f"{NAME}A.weight"), r"lacks transformer\.h\.1\..*q_proj\.lora_A"),
    (lambda t: t.update({f"{NAME}B.weight": draw(17, 3)}), r"shapes \(3, 16\) and \(17, 3\)"),
    (lambda t: t.update({f"{NAME}B.weight": draw(16, 2)}), r"this model makes them \(r, 16\)"),
    (lambda t: t.update({"base_model.model.score.weight": draw(2, 16)}), "holds score.weight"),
    (lambda t: t.clear(), "holds no factors"),
  ],
)
def test_wrong_tensors_are_named(folder, change, message):
  change_tensors(folder, change)
  with pytest.raises(UserError, match=message):
    peft_files.read_adapter(folder, CONFIG)


def test_wrong_files(folder, tmp_path):
  path = folder / peft_files.WEIGHTS_FILE
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(UserError, match="is damaged"):
    peft_files.read_adapter(folder, CONFIG)
  path.unlink()
  with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
    peft_files.read_adapter(folder, CONFIG)
  (folder / peft_files.CONFIG_FILE).write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    peft_files.read_adapter(folder, CONFIG)
  with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
    peft_files.read_adapter(folder / "nowhere", CONFIG)


@pytest.mark.parametrize("name, value", [("layer_replication", [[0, 2]]), ("use_wonders", True)])
def test_settings_that_are_not_known_are_refused(folder, name, value):
  """Also those that come after this was written."""
  path = folder / peft_files.CONFIG_FILE
  path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
  with pytest.raises(UserError, match=f"{name} is .*, which is not supported"):
    peft_files.read_adapter(folder, CONFIG)


def test_load_with_an_adapter(folder, tmp_path):
  lm = gptneo_jax.init(CONFIG)
  lm.save(str(tmp_path / "base"))
  adapted = gptneo_jax.load(str(tmp_path / "base"), adapter=str(folder))
  expected = lora.merged(lm.params, peft_files.read_adapter(folder, CONFIG))
  jax.tree.map(np.testing.assert_array_equal, adapted.params, expected)
  assert np.abs(adapted.logits([[1, 2, 3]]) - lm.logits([[1, 2, 3]])).max() > 0
