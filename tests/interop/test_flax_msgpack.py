"""Files of the Flax classes that transformers had before version 5."""

import pathlib

import flax.serialization
import numpy as np
import pytest

from gptneo_jax import interop
from tests.helpers import hf_folders
from tests.helpers.conversion import error, there_and_back

FAMILIES = ("gpt_neo", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_msgpack_of_the_old_flax_classes(tmp_path, family):
  weights = hf_folders.tensors(family, "bfloat16" if family == "gpt2" else "float32")
  tree: dict = {}
  for name, array in weights.items():
    *parents, leaf = name.split(".")
    if leaf == "weight":
      norm, table = "ln_" in name, "wte" in name or "wpe" in name
      leaf = "scale" if norm else "embedding" if table else "kernel"
      array = array.T if leaf == "kernel" else array
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.ascontiguousarray(array)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(family))
  data = flax.serialization.msgpack_serialize(tree)
  path = pathlib.Path(name, "flax_model.msgpack")
  path.write_bytes(data)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  path.write_bytes(data[: len(data) // 2])
  assert "flax_model.msgpack is damaged" in error(interop.open_hf, name)
  path.write_bytes(b"\x80")
  assert "no tensors" in error(interop.open_hf, name)
