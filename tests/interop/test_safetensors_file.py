"""Our reader and writer of safetensors agree with the library, and notice damage."""

import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gptneo_jax import interop
from gptneo_jax.interop.safetensors_file import open_safetensors, write_safetensors
from tests.helpers import hf_folders
from tests.helpers.conversion import error


def test_the_writer_of_safetensors_is_the_librarys_equal(tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.ones((), np.float16),
    "d": np.full((5, 1), 2.5, ml_dtypes.bfloat16),
  }
  specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
  write_safetensors(tmp_path / "x.safetensors", specs, iter(arrays.values()))
  hf_folders.assert_same(safetensors.numpy.load_file(tmp_path / "x.safetensors"), arrays)
  read = {n: t.read() for n, t in open_safetensors(tmp_path / "x.safetensors").items()}
  hf_folders.assert_same(read, arrays)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_safetensors(tmp_path, keep):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  path = pathlib.Path(name, "model.safetensors")
  data = path.read_bytes()
  path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
  assert f"{path} is damaged" in error(interop.open_hf, name)
