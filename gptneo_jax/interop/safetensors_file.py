"""Reads and writes safetensors files tensor by tensor.

The library's writer needs all tensors at once, and its reader maps the file, which then counts as
this process's memory. The format: the header's length in eight bytes, a JSON header with each
tensor's type, shape and offsets, the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gptneo_jax.errors import UserError
from gptneo_jax.interop.tensor import Tensor

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def open_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a file by name, not read yet. Raises UserError if the file is damaged."""
  import safetensors

  try:
    with safetensors.safe_open(path, framework="np"):
      pass  # checks the header, the offsets and the length of the file
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(size))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None
  header.pop("__metadata__", None)
  tensors = {}
  for name, entry in header.items():
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
      raise UserError(f"{path}: {name} is stored as {entry['dtype']}, which is not supported")
    shape, start = tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
    tensors[name] = Tensor(shape, dtype, path, _reader(path, shape, dtype, start))
  return tensors


def _reader(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, start: int):
  def read() -> np.ndarray:
    array = np.empty(shape, dtype)
    with path.open("rb") as file:
      file.seek(start)
      file.readinto(array.reshape(-1).view(np.uint8).data)
    return array

  return read


def write_safetensors(
  path: pathlib.Path,
  specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  arrays: Iterable[np.ndarray],
) -> None:
  """Writes a file that transformers and PyTorch open.

  specs: shape and type of each tensor by name, in the order of `arrays`, an iterator that may make
  them one by one.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, (shape, dtype) in specs.items():
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]
    }  # fmt: skip
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # aligns the tensors to eight bytes
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for (name, (shape, dtype)), array in zip(specs.items(), arrays, strict=True):
      assert array.shape == shape and array.dtype == dtype, name
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
