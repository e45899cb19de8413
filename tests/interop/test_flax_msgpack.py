"""Files of the Flax classes that transformers had before version 5."""

import pathlib

import flax.serialization
import msgpack
import numpy as np
import pytest

from gptneo_jax import interop
from gptneo_jax.errors import UserError
from gptneo_jax.interop import flax_msgpack
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


def array(shape=(2, 3), name="float32", data=b"\0" * 24, code=1):
  """A map of one array, as flax writes it."""
  packed = msgpack.packb((shape, name, data), use_bin_type=True)
  return msgpack.packb({"a": msgpack.ExtType(code, packed)})


@pytest.mark.parametrize(
  "content",
  [
    array(data=b"\0" * 23), array(data=b"\0" * 25), array(shape=(2, -3)), array(shape=(2, "x")),
    array(name=",loat16"),
    array(name="object"), array(name="nothing"), array(name="datetime64[s]"), array(code=2),
    array(shape=(10**6, 10**6)), array()[:-1], b"\x81\xa1a" * 5000, b"\xc1",
    msgpack.packb({"a": msgpack.ExtType(1, b"\x93\x92\x02")}),
    msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2, 3), "float32", "text")))}),
  ],
  ids=range(15),
)  # fmt: skip
def test_what_is_no_array_of_flax(tmp_path, content):
  """Found when the file is opened, before anything is allocated."""
  path = tmp_path / "flax_model.msgpack"
  path.write_bytes(array())
  assert flax_msgpack.open_msgpack(path)["a"].read().shape == (2, 3)
  path.write_bytes(content)
  with pytest.raises(UserError, match="is damaged or not a msgpack file of flax"):
    flax_msgpack.open_msgpack(path)
