"""Reads `flax_model.msgpack`, which the Flax classes of transformers saved before version 5.

Nested maps of arrays by the modules' names: a `kernel` is the transpose of PyTorch's `weight`;
`scale` and `embedding` are PyTorch's `weight` as it is. The file is indexed first and each array
is read when it is needed: flax's own reader would hold the model in memory twice. Source:
flax.serialization, and transformers 4.57's modeling_flax_pytorch_utils.py.
"""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import ml_dtypes
import msgpack
import numpy as np

from gptneo_jax.errors import UserError, first_line
from gptneo_jax.interop.tensor import Tensor

_NDARRAY = 1  # flax's number for an array among msgpack's extension types
_CHUNKED = "__msgpack_chunked_array__"  # flax's key for an array above 1 GiB
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_TYPES = (
  "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64",
  "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
_HEADER = 64  # bytes: enough for the shape and type before any array's data


def open_msgpack(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors by PyTorch's names, not read yet. Raises UserError if the file is damaged."""
  tensors = {}
  try:
    with path.open("rb") as file:
      end = path.stat().st_size
      for keys, start, size in _arrays(file, ()):
        if start + size > end:
          raise EOFError
        file.seek(start)
        shape, dtype, before = _shape_and_type(file.read(min(size, _HEADER)), size)
        file.seek(start + size)
        transposed = keys[-1] == "kernel" and len(shape) == 2
        read = _reader(path, start + before, shape, dtype, transposed)
        tensors[pytorch_name(keys)] = Tensor(
          shape[::-1] if transposed else shape, dtype, path, read
        )
  except (
    EOFError, ValueError, TypeError, KeyError, OSError, RecursionError, msgpack.UnpackException,
  ) as error:  # fmt: skip
    reason = first_line(error) if str(error) else "it ends too early"
    raise UserError(f"{path} is damaged or not a msgpack file of flax: {reason}") from None
  return tensors


def pytorch_name(keys: Sequence[str]) -> str:
  """PyTorch's name of a flax parameter, given its path."""
  return ".".join((*keys[:-1], _LEAVES.get(keys[-1], keys[-1])))


def _arrays(file: BinaryIO, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int, int]]:
  """Path, offset and length of every array in the map that begins at the file's position."""
  for _ in range(_map_size(file)):
    key = _string(file)
    if key == _CHUNKED:
      raise ValueError(f"{'/'.join(keys)} is above 1 GiB and stored in chunks: not supported")
    here, code = file.tell(), _byte(file)
    if code in (0xC7, 0xC8, 0xC9):
      size = _number(file, 1 << (code - 0xC7))
      if _byte(file) != _NDARRAY:
        raise ValueError(f"{'/'.join((*keys, key))} is not an array")
      yield (*keys, key), file.tell(), size
    else:
      file.seek(here)
      yield from _arrays(file, (*keys, key))


def _byte(file: BinaryIO) -> int:
  return _number(file, 1)


def _number(file: BinaryIO, size: int) -> int:
  data = file.read(size)
  if len(data) < size:
    raise EOFError
  return int.from_bytes(data, "big")


def _map_size(file: BinaryIO) -> int:
  code = _byte(file)
  if 0x80 <= code <= 0x8F:
    return code - 0x80
  if code in (0xDE, 0xDF):
    return _number(file, 2 << (code - 0xDE))
  raise ValueError(f"byte {code:#x} where a map begins")


def _string(file: BinaryIO) -> str:
  code = _byte(file)
  if 0xA0 <= code <= 0xBF:
    size = code - 0xA0
  elif code in (0xD9, 0xDA):
    size = _number(file, 1 << (code - 0xD9))
  else:
    raise ValueError(f"byte {code:#x} where a name begins")
  return file.read(size).decode()


def _shape_and_type(header: bytes, size: int) -> tuple[tuple[int, ...], np.dtype, int]:
  """Shape, type, and bytes before the data of an array that is stored in `size` bytes.

  header: the first of them. Raises ValueError where the data have not the size of the shape.
  """
  unpacker = msgpack.Unpacker(raw=False)
  unpacker.feed(header)
  if unpacker.read_array_header() != 3:
    raise ValueError("an array is not of shape, type and data")
  shape, name = tuple(unpacker.unpack()), unpacker.unpack()
  if name not in _TYPES:
    raise ValueError(f"an array is of type {name!r:.40}")
  dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
  if not all(type(length) is int and length >= 0 for length in shape):
    raise ValueError(f"an array is of shape {shape}")
  data = io.BytesIO(header[unpacker.tell() :])
  code = _byte(data)
  if code not in (0xC4, 0xC5, 0xC6):
    raise ValueError(f"byte {code:#x} where data begin")
  stored = _number(data, 1 << (code - 0xC4))
  before = unpacker.tell() + data.tell()
  if stored != math.prod(shape) * dtype.itemsize or before + stored != size:
    raise ValueError(f"an array of shape {shape} has {stored:,} bytes")
  return shape, dtype, before


def _reader(
  path: pathlib.Path, start: int, shape: tuple[int, ...], dtype: np.dtype, transposed: bool
):
  def read() -> np.ndarray:
    with path.open("rb") as file:
      file.seek(start)
      array = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    return array.T if transposed else array

  return read
