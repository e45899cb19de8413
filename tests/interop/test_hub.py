"""Models of the hub: cached, downloaded, and without a network."""

import pathlib

import huggingface_hub
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import convert, interop
from gptneo_jax.evals import provenance
from tests.helpers import hf_folders, hub_cache
from tests.helpers.conversion import error


def test_no_network_is_one_line_and_one_request(monkeypatch):
  requests = []

  def no_network(self, name, timeout, revision):
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

  def download(_, local_files_only=False, allow_patterns=(), revision=None):
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


OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def two_commits(tmp_path, monkeypatch):
  """The weights of a model at two commits, by commit."""
  weights = {}
  for factor, (commit, refs) in enumerate({OLD: ["v1"], NEW: ["main"]}.items(), 1):
    weights[commit] = {name: factor * array for name, array in hf_folders.tensors().items()}
    hf_folders.save(tmp_path / commit, hf_folders.config(), weights[commit])
    hf_folders.word_tokenizer(tmp_path / commit)
    hub_cache.write(tmp_path / "hub", "org/model", commit, tmp_path / commit, *refs)
  hub_cache.use(monkeypatch, tmp_path / "hub")
  return weights


@pytest.mark.parametrize(
  "name, commit", [("", NEW), ("@v1", OLD), (f"@{OLD}", OLD), ("@main", NEW)]
)
def test_the_weights_of_a_revision(two_commits, name, commit):
  opened = interop.open_hf(f"org/model{name}")
  assert opened.folder.name == commit
  expected = two_commits[commit]["transformer.wte.weight"]
  np.testing.assert_array_equal(gptneo_jax.load(f"org/model{name}").params["wte"][:61], expected)
  assert provenance.of_checkpoint(f"org/model{name}", progress=False)["commit"] == commit


def test_a_conversion_says_the_commit(two_commits, tmp_path, capsys):
  assert convert.main(["hf-to-orbax", "org/model@v1", str(tmp_path / "ours")]) == 0
  assert capsys.readouterr().out.endswith(f"step 0, of org/model@v1 at {OLD[:7]}\n")
  assert convert.main(["hf-to-orbax", str(tmp_path / OLD), str(tmp_path / "local")]) == 0
  assert " at " not in capsys.readouterr().out.splitlines()[-1]


def test_a_revision_that_is_not_there(two_commits):
  message = error(interop.open_hf, "org/model@v9")
  assert message.startswith("org/model@v9: no such folder, and the hub does not provide it: ")
