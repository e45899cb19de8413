"""Which file of a folder is read, and which files are refused by name."""

import json

import pytest

from gptneo_jax import interop
from tests.helpers import hf_folders
from tests.helpers.conversion import error


@pytest.mark.parametrize(
  "file", ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, file):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
  (tmp_path / "hf" / file).write_text(pointer)
  message = error(interop.open_hf, name)
  assert f"{file} is a Git LFS pointer, not the file itself: fetch that" in message


def test_an_adapter_is_no_model(tmp_path):
  (tmp_path / "adapter_config.json").write_text("{}")
  (tmp_path / "adapter_model.bin").write_bytes(b"")
  assert "holds an adapter, not a model: pass it as --adapter" in error(
    interop.open_hf, str(tmp_path)
  )
  name = hf_folders.save(tmp_path, hf_folders.config())
  assert "holds an adapter, not a model: pass it as --adapter" in error(interop.open_hf, name)


def test_a_part_that_is_not_there(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  hf_folders.split(tmp_path / "hf", hf_folders.tensors())
  (tmp_path / "hf/model-00002-of-00003.safetensors").unlink()
  assert "names model-00002-of-00003.safetensors, which does not exist" in error(
    interop.open_hf, name
  )
  (tmp_path / "hf/model.safetensors.index.json").write_text("[]")
  assert "model.safetensors.index.json is damaged" in error(interop.open_hf, name)


@pytest.mark.parametrize(
  "files, words",
  [
    (["rust_model.ot"], "EleutherAI/gpt-neo-2.7B"),
    (["tf_model.h5"], "EleutherAI/gpt-neo-2.7B"),
    (["model.ckpt-4000.index"], "EleutherAI/gpt-neo-2.7B"),
    ([], "holds no weights: none of model.safetensors, pytorch_model.bin, flax_model.msgpack"),
  ],
)
def test_files_that_are_refused_by_name(tmp_path, files, words):
  fields = {"model_type": "gpt_neo", "num_layers": 32, "attention_types": [[["global"], 32]]}
  name = hf_folders.save(tmp_path / "hf", fields)
  for file in files:
    (tmp_path / "hf" / file).write_bytes(b"")
  message = error(interop.open_hf, name)
  assert words in message
  assert all(file[:10] in message for file in files)


def test_openais_own_files(tmp_path):
  (tmp_path / "hparams.json").write_text('{"n_layer": 24, "n_embd": 1024}')
  (tmp_path / "model.ckpt.index").write_bytes(b"")
  message = error(interop.open_hf, str(tmp_path))
  assert "OpenAI's own TensorFlow files" in message
  assert "openai-community/gpt2-medium on the Hugging Face hub" in message


@pytest.mark.parametrize("part", ["../other/model.safetensors", "/etc/passwd", "a/b.bin", 5])
def test_an_index_reaches_no_other_folder(tmp_path, part):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  hf_folders.save(tmp_path / "other", hf_folders.config(), hf_folders.tensors())
  index = {"weight_map": dict.fromkeys(hf_folders.tensors(), part)}
  (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
  assert f"names {part!r}, which is no file of its folder" in error(interop.open_hf, name)
