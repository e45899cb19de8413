"""Where a converted folder may be written."""

from gptneo_jax import interop
from gptneo_jax.interop import atomic_folder
from tests.helpers import hf_folders
from tests.helpers.conversion import error


def test_a_destination_that_is_not_empty(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  (tmp_path / "full").mkdir()
  (tmp_path / "full/notes").write_text("mine")
  (tmp_path / "empty").mkdir()
  message = error(interop.hf_to_orbax, name, tmp_path / "full", tokenizer=False)
  assert "full already exists and is not empty" in message
  interop.hf_to_orbax(name, tmp_path / "empty", tokenizer=False)
  message = error(interop.orbax_to_hf, tmp_path / "empty", tmp_path / "full", tokenizer=False)
  assert "full already exists and is not empty" in message
  assert (tmp_path / "full/notes").read_text() == "mine"
  assert "not a local folder" in error(interop.hf_to_orbax, name, "gs://a/b", tokenizer=False)
  message = error(interop.orbax_to_hf, "gs://bucket/run", tmp_path / "back")
  assert message.startswith("gs://bucket/run is not a local folder: copy it to one first")


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda _: usage)
  message = error(interop.hf_to_orbax, name, tmp_path / "ours", tokenizer=False)
  assert "0.0 GB are free" in message
