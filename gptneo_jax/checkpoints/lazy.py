"""Checkpoints written and read piece by piece, so that no model is ever whole in memory.

The folder that comes of it is the same as `Checkpointer`'s: either side reads the other's. Like
checkpoint.py, this file knows orbax, of which it uses the public names only: a handler that takes
each array from a function, and writes one slice of the leading axis after another.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from gptneo_jax.checkpoints.reading import params_metadata
from gptneo_jax.checkpoints.step_folders import CheckpointError, existing_step
from gptneo_jax.errors import first_line

_ITEM = "params"


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array that is somewhere else.

  `read(i)` gives slice i of the leading axis if `stacked`, and `read(None)` the whole array if not:
  the pieces in which it is written and read.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  stacked: bool
  read: Callable[[int | None], np.ndarray]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  @property
  def pieces(self) -> list[int | None]:
    """What `read` takes, in order."""
    return list(range(self.shape[0])) if self.stacked else [None]

  def load(self) -> np.ndarray:
    """The whole array, in memory."""
    if not self.stacked:
      return self.read(None)
    array = np.empty(self.shape, self.dtype)
    for i in self.pieces:
      array[i] = self.read(i)
    return array


def write_params(
  folder: str | os.PathLike,
  params: Any,
  step: int = 0,
  on_written: Callable[[int], object] = lambda _: None,
) -> None:
  """Writes FOLDER/STEP with `params` alone, holding two pieces in memory at a time.

  Args:
    folder: local; the step must not be there yet.
    params: nested dictionaries of LazyArray.
    step: names the checkpoint.
    on_written: told the bytes of each piece.

  Raises:
    What a LazyArray's `read` raises; OSError or ValueError where writing fails.
  """
  # Orbax warns that without a handler of jax.Array it stores no layout over devices: there is none.
  quiet = lambda record: record.levelno > logging.WARNING  # noqa: E731
  logging.getLogger("absl").addFilter(quiet)
  try:
    registry = ocp.type_handlers.create_type_handler_registry(
      (LazyArray, _PiecewiseHandler(on_written))
    )
    # Weights shrink by a few percent only, and compressing them takes longer than writing them.
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    items: dict[str, Any] = {_ITEM: handler}  # Any: orbax has named options beside the items
    composite = ocp.CompositeCheckpointHandler(**items)
    path = epath.Path(os.path.abspath(folder))
    path.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(composite) as writer:
      writer.save(path / str(step), args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(params)}))
  finally:
    logging.getLogger("absl").removeFilter(quiet)


def open_params(folder: str | os.PathLike, step: int | None = None) -> dict[str, LazyArray]:
  """The saved parameters by their path ('blocks/layer_0/attn/q/kernel'), none of them read yet.

  Those below `blocks`, whose leading axis is the layers', are stacked.

  Args:
    folder: holds the numbered checkpoints.
    step: default the newest.

  Raises:
    CheckpointError: no such checkpoint; on reading a piece, damage, naming the array.
  """
  step = existing_step(folder, step)
  metadata = params_metadata(str(folder), step)
  path = epath.Path(os.path.abspath(folder)) / str(step) / _ITEM
  leaves = {
    tuple(key.key for key in keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(metadata)
  }
  # The chunk that a slice lies in stays in the cache until the next array takes its place.
  largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
  context = ts.Context({"cache_pool": {"total_bytes_limit": largest}, "cache_pool#ocdbt": {}})
  return {
    "/".join(keys): LazyArray(
      tuple(leaf.shape),
      np.dtype(leaf.dtype),
      keys[0] == "blocks",
      _Reader(path, ".".join(keys), context).read,
    )
    for keys, leaf in leaves.items()
  }


class _PiecewiseHandler(ocp.type_handlers.NumpyHandler):
  """Writes LazyArrays as orbax writes NumPy arrays, but one after another and piece by piece."""

  def __init__(self, on_written: Callable[[int], object]):
    super().__init__()
    self._on_written = on_written

  async def serialize(self, values, infos, args=None):
    del args
    return [
      ocp.future.CommitFutureAwaitingContractedSignals(
        self._write_all(values, infos), name="pieces"
      )
    ]

  async def _write_all(self, arrays, infos) -> None:
    # Without a sync after each file: the folder gets its name only when all of it is written.
    context = ts.Context({"file_io_sync": False, "cache_pool#ocdbt": {}})
    for array, info in zip(arrays, infos):
      await info.await_path_creation()
      piece = (1, *array.shape[1:]) if array.stacked else array.shape
      spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=info.is_ocdbt_checkpoint,
        global_shape=array.shape,
        local_shape=piece,
        dtype=array.dtype,
        process_index=0,
      )
      stored = await ts.open(ts.Spec(spec), create=True, open=True, context=context)
      writing = None
      for i in array.pieces:
        data = array.read(i)  # while the piece before it is being written
        if writing is not None:
          await writing
        target = stored if i is None else stored[i]
        writing = target.write(data, can_reference_source_data_indefinitely=True)
        self._on_written(data.nbytes)
      assert writing is not None  # an array of no layers is never written
      await writing


def _uncached() -> ts.Context:
  return ts.Context({"cache_pool#ocdbt": {}})


class _Reader:
  """Reads one stored array; opens it at the first piece."""

  def __init__(self, path: epath.Path, name: str, context: ts.Context):
    self._path, self._name, self._context = path, name, context
    self._array = None

  def read(self, index: int | None) -> np.ndarray:
    try:
      if self._array is None:
        ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(self._path)
        info = ocp.type_handlers.ParamInfo(
          name=self._name, parent_dir=self._path, use_zarr3=False, ts_context=self._context
        )
        spec = ts.Spec(ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=ocdbt))
        self._array = ts.open(spec, context=_uncached()).result()
        chunk = self._array.chunk_layout.read_chunk.shape
        if index is not None and chunk is not None and (chunk[0] or 1) > 1:
          # Of a training run: one chunk for all layers, not to be decoded once for each of them.
          self._array = ts.open(spec, context=self._context).result()
      return np.asarray((self._array if index is None else self._array[index]).read().result())
    except ValueError as error:  # tensorstore's, whatever the cause
      raise CheckpointError(
        f"checkpoint {self._path.parent.name} in {self._path.parent.parent} is damaged:"
        f" {self._name}: {first_line(error)[:300]}"
      ) from error
