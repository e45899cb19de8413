"""Converted folders come with a tokenizer."""

from gptneo_jax import interop
from tests.helpers import hf_folders
from tests.helpers.conversion import error


def test_no_tokenizer(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  message = error(interop.hf_to_orbax, name, tmp_path / "ours")
  assert "holds no tokenizer; --tokenizer gives one, --no_tokenizer" in message
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  message = error(interop.orbax_to_hf, tmp_path / "ours", tmp_path / "back")
  assert "holds no tokenizer; --tokenizer gives one, --no_tokenizer" in message


def test_the_tokenizer_goes_along(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  hf_folders.word_tokenizer(tmp_path / "hf")
  interop.hf_to_orbax(name, tmp_path / "ours")
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back")
  for file in ("tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()
