"""Writes and reads the parameters of a checkpoint slice by slice, never the model in memory.

The format is that of `Checkpointer`, and each reads what the other writes. Uses public names of
orbax only: a type handler that gets each array from a function and writes one slice of its leading
axis after another.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from gptneo_jax.checkpoints import adapters, manifest
from gptneo_jax.checkpoints.quiet import quiet_orbax
from gptneo_jax.checkpoints.reading import params_metadata, require_undamaged
from gptneo_jax.checkpoints.step_folders import CheckpointError, existing_step
from gptneo_jax.errors import first_line
from gptneo_jax.model import lora

_ITEM = "params"


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array that has not been read yet, and is read and written in slices.

  If `stacked`, the slices are those of the leading axis, and `read(i)` returns slice i; else the
  array is one slice, `read(None)`.
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
  def slices(self) -> list[int | None]:
    """The arguments of `read`, in order."""
    return list(range(self.shape[0])) if self.stacked else [None]

  def load(self) -> np.ndarray:
    """The array in memory."""
    if not self.stacked:
      return self.read(None)
    array = np.empty(self.shape, self.dtype)
    for i in self.slices:
      array[i] = self.read(i)
    return array


def write_params(
  folder: str | os.PathLike,
  params: Any,
  step: int = 0,
  on_written: Callable[[int], object] = lambda _: None,
) -> None:
  """Writes FOLDER/STEP with nothing but `params`, with two slices in memory at a time.

  Args:
    folder: local; must not have this step yet.
    params: nested dictionaries of LazyArray.
    step: number of the checkpoint.
    on_written: called with the bytes of each slice.

  Raises:
    Whatever a LazyArray's `read` raises; OSError or ValueError if writing fails.
  """
  registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _SliceHandler(on_written)))
  # Compression saves a few percent of weights, and takes longer than writing them.
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
  items: dict[str, Any] = {_ITEM: handler}  # Any: orbax has named options beside the items
  path = epath.Path(os.path.abspath(folder))
  path.mkdir(parents=True, exist_ok=True)
  # Among others orbax warns that without a handler of jax.Array it stores no shardings: none exist.
  with quiet_orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler(**items)) as writer:
    writer.save(path / str(step), args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(params)}))
  manifest.write(path / str(step), permanent=False)


def open_params(folder: str | os.PathLike, step: int | None = None) -> dict[str, LazyArray]:
  """The saved parameters by path ('blocks/layer_0/attn/q/kernel'), not read yet.

  Those below `blocks`, whose leading axis is the layers', are stacked. Of a run of LoRA they are
  those of the merged model, merged as they are read.

  Args:
    folder: holds the numbered checkpoints.
    step: default the newest.

  Raises:
    CheckpointError: no such checkpoint; when a slice is read, damage, naming the array.
  """
  step = existing_step(folder, step)
  if (settings := adapters.settings_of(folder)) is None:
    return _open(folder, step)
  base = _open(epath.Path(folder) / adapters.BASE, 0)
  adapter = adapters.adapter_of(read_learned(folder, step), settings)

  def merged(path: str, leaf: LazyArray) -> LazyArray:
    read = lambda index: lora.merge_slice(adapter, path, index, leaf.read(index))
    return dataclasses.replace(leaf, read=read)

  return {path: merged(path, leaf) for path, leaf in base.items()}


def read_learned(folder: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
  """What a checkpoint of a run of LoRA holds, in memory."""
  tree: dict[str, Any] = {}
  for path, leaf in _open(folder, existing_step(folder, step)).items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf.load()
  return tree


def _open(folder: str | os.PathLike, step: int) -> dict[str, LazyArray]:
  """The arrays that a checkpoint holds."""
  require_undamaged(str(folder), step)
  metadata = params_metadata(str(folder), step)
  path = epath.Path(os.path.abspath(folder)) / str(step) / _ITEM
  leaves = {
    tuple(key.key for key in keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(metadata)
  }
  # The cache holds the chunk that a slice is in, until the next array is read.
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


class _SliceHandler(ocp.type_handlers.NumpyHandler):
  """Writes LazyArrays as orbax writes NumPy arrays, but one array and one slice after another."""

  def __init__(self, on_written: Callable[[int], object]):
    super().__init__()
    self._on_written = on_written

  async def serialize(self, values, infos, args=None):
    del args
    return [
      ocp.future.CommitFutureAwaitingContractedSignals(
        self._write_all(values, infos), name="slices"
      )
    ]

  async def _write_all(self, arrays, infos) -> None:
    # No sync after each file: the folder is renamed into place only when all of it is written.
    context = ts.Context({"file_io_sync": False, "cache_pool#ocdbt": {}})
    for array, info in zip(arrays, infos):
      await info.await_path_creation()
      chunk = (1, *array.shape[1:]) if array.stacked else array.shape
      spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=info.is_ocdbt_checkpoint,
        global_shape=array.shape,
        local_shape=chunk,
        dtype=array.dtype,
        process_index=0,
      )
      stored = await ts.open(ts.Spec(spec), create=True, open=True, context=context)
      writing = None
      for i in array.slices:
        data = array.read(i)  # while the slice before it is being written
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
  """Reads one stored array; opens it when the first slice is read."""

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
          # A training run stores all layers in one chunk: the cache saves decoding it for each.
          self._array = ts.open(spec, context=self._context).result()
      return np.asarray((self._array if index is None else self._array[index]).read().result())
    except ValueError as error:  # tensorstore raises it for any cause
      raise CheckpointError(
        f"checkpoint {self._path.parent.name} in {self._path.parent.parent} is damaged:"
        f" {self._name}: {first_line(error)[:300]}"
      ) from error
