"""Every type of weights, stored and asked for, in both directions."""

import json

import ml_dtypes
import numpy as np
import pytest

from gptneo_jax import interop
from gptneo_jax.checkpoints import folder as our_folder
from tests.helpers import hf_folders
from tests.helpers.conversion import error, there_and_back

FAMILIES = ("gpt_neo", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_stored_type_goes_there_and_back_bit_for_bit(tmp_path, family, dtype):
  weights = hf_folders.tensors(family, dtype)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(family), weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert our_folder.load_config(tmp_path / "ours").param_dtype == dtype
  assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype


def test_float64(tmp_path):
  weights = {name: x.astype(np.float64) for name, x in hf_folders.tensors().items()}
  weights["transformer.ln_f.bias"] *= 1 + 1e-12
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  assert "is stored as float64: choose a type with --dtype" in error(interop.open_hf, name)
  expected = {name: x.astype(np.float32) for name, x in weights.items()}
  hf_folders.assert_same(there_and_back(tmp_path, name, dtype="float32"), expected)
  weights["transformer.ln_f.bias"][2] = 1e300
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  message = error(interop.hf_to_orbax, name, tmp_path / "no", dtype="float32", tokenizer=False)
  assert "transformer.ln_f.bias has values beyond the range of float32" in message


def test_numbers_that_are_not_finite_are_said_once_each_way_and_kept(tmp_path, caplog):
  weights = hf_folders.tensors("gpt2")
  weights["transformer.h.1.attn.c_attn.weight"][3, 4:6] = np.nan, -np.inf
  name = hf_folders.save(tmp_path / "hf", hf_folders.config("gpt2"), weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  said = "transformer.h.1.attn.c_attn.weight holds 2 numbers that are not finite"
  assert [text for text in caplog.messages if "finite" in text] == [said] * 2


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_dtype_on_the_way_in_and_out(tmp_path, stored, wanted):
  weights = hf_folders.tensors(dtype=stored)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  numpy_type = ml_dtypes.bfloat16 if wanted == "bfloat16" else wanted
  expected = {key: array.astype(numpy_type) for key, array in weights.items()}
  hf_folders.assert_same(there_and_back(tmp_path, name, dtype=wanted), expected)
  interop.hf_to_orbax(name, tmp_path / "as_stored", tokenizer=False)
  interop.orbax_to_hf(tmp_path / "as_stored", tmp_path / "cast", dtype=wanted, tokenizer=False)
  hf_folders.assert_same(hf_folders.load(tmp_path / "cast"), expected)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
  weights = hf_folders.tensors()
  weights["transformer.ln_f.bias"][3] = 1e6
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  message = error(interop.hf_to_orbax, name, tmp_path / "ours", dtype="float16", tokenizer=False)
  assert "transformer.ln_f.bias has values beyond the range of float16" in message
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]
