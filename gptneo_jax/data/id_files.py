"""Files of ids that other programs wrote: a document of them is a record.

NAME.idx of Megatron-LM, with NAME.bin: megatron/core/datasets/indexed_dataset.py
NAME.ds of datatrove, with NAME.ds.index: datatrove/pipeline/tokens/tokenizer.py
.tfrecord, .tfrecords: tfrecords.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax.data import tfrecords
from gptneo_jax.data.documents import BadRecords, Wanted
from gptneo_jax.data.file_formats import ending
from gptneo_jax.data.files import opened

_MEGATRON = b"MMIDIDX\x00\x00"
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # floats hold no ids
ENDINGS = (*tfrecords.ENDINGS, ".idx", ".ds")


class _Documents(NamedTuple):
  """Where documents are in a file: from element start_D on, size_D elements of `dtype`."""

  path: str
  dtype: np.dtype
  start_D: np.ndarray
  size_D: np.ndarray


def read_ids(
  fs: Any, path: str, wanted: Wanted, bad_records: BadRecords, end_of_text: int
) -> Iterator[tuple[int, np.ndarray]]:
  """(number past it, int64 ids) of each document that is wanted, with its end of text.

  Chunks of TFRecords are not ended. Raises DataError as `bad_records` decides.
  """
  kind = ending(path)
  with opened(fs, path, bad_records) as file:
    if file is None:
      return
    if kind in tfrecords.ENDINGS:
      yield from tfrecords.read_ids(file, path, wanted, bad_records, end_of_text)
      return
    try:
      documents = (_megatron if kind == ".idx" else _datatrove)(fs, path, file)
    except (ValueError, OSError) as error:
      bad_records.add_file(path, str(error))
      return
  yield from _read(fs, documents, wanted, bad_records, end_of_text)


def _megatron(fs: Any, path: str, file: Any) -> _Documents:
  """Raises ValueError for what is no index."""
  size = file.seek(0, 2)
  file.seek(0)
  if file.read(len(_MEGATRON)) != _MEGATRON:
    raise ValueError("not an index of Megatron-LM")
  head = file.read(8 + 1 + 8 + 8)
  if len(head) < 25 or head[:8] != (1).to_bytes(8, "little") or head[8] not in _DTYPES:
    raise ValueError("not an index of Megatron-LM that holds ids, of version 1")
  sequences, bounds = (int(number) for number in np.frombuffer(head[9:], "<u8"))
  if sequences * 12 + bounds * 8 > size - 34:
    raise ValueError("the index is cut off")
  length_S = np.frombuffer(file.read(4 * sequences), "<i4").astype(np.int64)
  byte_S = np.frombuffer(file.read(8 * sequences), "<i8")
  bound_D = np.frombuffer(file.read(8 * bounds), "<i8")
  dtype = np.dtype(_DTYPES[head[8]])
  start_S = np.concatenate([[0], np.cumsum(length_S)])
  if (length_S < 0).any() or not np.array_equal(byte_S, start_S[:-1] * dtype.itemsize):
    raise ValueError("its sequences are not one after another")
  ordered = (
    bounds and bound_D[0] == 0 and bound_D[-1] == sequences and (np.diff(bound_D) >= 0).all()
  )
  if not ordered:
    raise ValueError("its documents are not one after another")
  data = path.removesuffix(".idx") + ".bin"
  return _checked(fs, data, dtype, start_S[bound_D])


def _datatrove(fs: Any, path: str, file: Any) -> _Documents:
  """`file`: the ids. Raises ValueError if its index does not fit them."""
  size = file.seek(0, 2)
  if not fs.exists(f"{path}.index"):
    raise ValueError(f"there is no {path}.index beside it")
  with fs.open(f"{path}.index", "rb") as index:
    content = index.read()
  if len(content) % 8:
    raise ValueError(f"{path}.index is cut off")
  end_D = np.concatenate([[0], np.frombuffer(content, "<u8").astype(np.int64)])
  if (np.diff(end_D) < 0).any():
    raise ValueError(f"the documents of {path}.index are not one after another")
  width = size // end_D[-1] if end_D[-1] else 2
  if width not in (2, 4) or width * end_D[-1] != size:
    raise ValueError(f"{path}.index is of {end_D[-1]:,} ids, and the file has {size:,} bytes")
  return _checked(fs, path, np.dtype(f"<u{width}"), end_D)


def _checked(fs: Any, path: str, dtype: np.dtype, bound_D: np.ndarray) -> _Documents:
  size = fs.size(path)
  if size != bound_D[-1] * dtype.itemsize:
    raise ValueError(f"{path} has {size:,} bytes and should have {bound_D[-1] * dtype.itemsize:,}")
  return _Documents(path, dtype, bound_D[:-1], np.diff(bound_D))


def _read(
  fs: Any, documents: _Documents, wanted: Wanted, bad_records: BadRecords, end_of_text: int
) -> Iterator[tuple[int, np.ndarray]]:
  path, dtype = documents.path, documents.dtype
  with opened(fs, path, bad_records) as file:
    if file is None:
      return
    for number, (start, size) in enumerate(zip(documents.start_D, documents.size_D)):
      if wanted(number):
        file.seek(int(start) * dtype.itemsize)
        ids = np.frombuffer(file.read(int(size) * dtype.itemsize), dtype).astype(np.int64)
        ended = len(ids) and ids[-1] == end_of_text
        yield number + 1, ids if ended else np.append(ids, end_of_text)
