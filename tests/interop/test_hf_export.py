"""Checkpoints become Hugging Face folders: weights, files beside them, and what is refused."""

import json

import jax
import numpy as np
import safetensors
import safetensors.numpy

from gptneo_jax import interop
from gptneo_jax.checkpoints import folder as our_folder
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.config import ModelConfig
from gptneo_jax.interop import hf_config, hf_export
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params
from tests.helpers import hf_folders
from tests.helpers.conversion import error, there_and_back


def test_a_run_with_a_padded_vocabulary_leaves_without_the_padding(tmp_path):
  config = hf_config.from_hf(hf_folders.config(), "config.json").replace(vocab_multiple=8)
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(heads.build(config)))
  our_folder.save_config(tmp_path / "run", config)
  writer = Checkpointer(str(tmp_path / "run"))
  for step in (1, 2):
    params = jax.tree.map(lambda x: x * step, ones)  # noqa: B023
    writer.save(step, params=params, optimizer={"count": np.zeros(1)}, data_state={})
  writer.close()
  for step, value in ((1, 1.0), (None, 2.0)):
    interop.orbax_to_hf(tmp_path / "run", tmp_path / f"{step}", step=step, tokenizer=False)
    found = hf_folders.load(tmp_path / f"{step}")
    assert {name: array.shape for name, array in found.items()} == hf_folders.shapes("gpt_neo")
    assert all((array == value).all() for array in found.values())


def test_several_files_come_in_and_go_out(tmp_path, monkeypatch):
  weights = hf_folders.tensors()
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  hf_folders.split(tmp_path / "hf", weights)
  monkeypatch.setattr(hf_export, "MAX_SHARD_BYTES", 20_000)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in weights.values())
  files = sorted((tmp_path / "back").glob("*.safetensors"))
  assert len(files) > 2
  assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
  for file in files:
    with safetensors.safe_open(file, framework="np") as opened:
      assert opened.metadata() == {"format": "pt"}
      assert all(index["weight_map"][name] == file.name for name in opened.keys())
    assert sum(array.nbytes for array in safetensors.numpy.load_file(file).values()) <= 20_000


def test_what_we_do_not_model_survives(tmp_path):
  extra = {
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "tokenizer_class": "GPT2Tokenizer",
    "id2label": {"0": "a", "1": "b"},
    "gradient_checkpointing": False,
  }
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(**extra), hf_folders.tensors())
  (tmp_path / "hf/generation_config.json").write_text('{"temperature": 0.9}')
  there_and_back(tmp_path, name)
  back = json.loads((tmp_path / "back/config.json").read_text())
  assert extra.items() <= back.items()
  assert (tmp_path / "back/generation_config.json").read_text() == '{"temperature": 0.9}'


def test_a_checkpoint_that_is_not_there_or_damaged(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  to_hf = lambda **options: error(
    interop.orbax_to_hf, tmp_path / "ours", tmp_path / "back", tokenizer=False, **options
  )
  assert "no checkpoint 7" in to_hf(step=7)
  right = our_folder.load_config(tmp_path / "ours")
  our_folder.save_config(tmp_path / "ours", ModelConfig())
  assert "the checkpoint is of another model than config.json" in to_hf()
  our_folder.save_config(tmp_path / "ours", right)
  for file in (tmp_path / "ours/0/params/ocdbt.process_0/d").iterdir():
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4])
  assert "damaged" in to_hf()
  assert not (tmp_path / "back").exists()
  assert "holds no config.json" in error(interop.orbax_to_hf, tmp_path, tmp_path / "back")
