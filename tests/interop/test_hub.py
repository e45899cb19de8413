"""Models of the hub: cached, downloaded, and without a network."""

import pathlib

import huggingface_hub

from gptneo_jax import interop
from tests.helpers import hf_folders
from tests.helpers.conversion import error


def test_no_network_is_one_line_and_one_request(monkeypatch):
  requests = []

  def no_network(self, name, timeout):
    requests.append((name, timeout))
    raise ConnectionError("no route to host\nmore")

  def not_cached(name, local_files_only=False, **_):
    assert local_files_only
    raise FileNotFoundError

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
  message = error(interop.open_hf, "EleutherAI/gpt-neo-125m")
  assert message.startswith(
    "EleutherAI/gpt-neo-125m: no such folder, and the hub does not provide it"
  )
  assert message.endswith("no route to host")
  assert requests == [("EleutherAI/gpt-neo-125m", 10)]


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: name)
  assert interop.open_hf("some/model").folder == pathlib.Path(name)


def test_one_form_of_the_weights_is_fetched(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  files = ["pytorch_model.bin", "model.safetensors", "flax_model.msgpack", "rust_model.ot"]
  asked = []

  class Info:
    siblings = [type("File", (), {"rfilename": file}) for file in files]  # noqa: RUF012

  def download(_, local_files_only=False, allow_patterns=()):
    if local_files_only:
      raise FileNotFoundError
    asked.extend(allow_patterns)
    return name

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  interop.open_hf("some/model")
  assert "model.safetensors" in asked
  assert "tokenizer.json" in asked
  assert not {"pytorch_model.bin", "flax_model.msgpack", "rust_model.ot"} & set(asked)
