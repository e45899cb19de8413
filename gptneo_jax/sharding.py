"""The mesh, and the one table from logical axes to mesh axes.

Parameters are split over `fsdp` (their hidden dimension) and `tensor` (heads, MLP width,
vocabulary); batches over `data` and `fsdp`. Optimiser state follows its parameter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gptneo_jax import axes

MESH_AXES = ("data", "fsdp", "tensor")
_AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)

RULES: dict[str, str | tuple[str, ...] | None] = {
  axes.VOCAB: "tensor",
  axes.POSITION: None,
  axes.EMBED: "fsdp",
  axes.HEADS: "tensor",
  axes.HEAD_DIM: None,
  axes.MLP: "tensor",
  axes.LAYERS: None,
  axes.NORM: None,
  axes.LABELS: None,
  axes.BATCH: ("data", "fsdp"),
  axes.LENGTH: None,
  axes.ACT_EMBED: None,
  axes.ACT_HEADS: "tensor",
  axes.ACT_MLP: "tensor",
  axes.ACT_VOCAB: "tensor",
}

BATCH_SPEC = PartitionSpec(RULES[axes.BATCH])


def mesh_sizes(data: int, fsdp: int, tensor: int, num_devices: int) -> tuple[int, int, int]:
  """Sizes of the mesh axes with the one -1 filled in.

  Raises ValueError if there is a second -1, or if the mesh is not of exactly the devices there are.
  """
  sizes = [data, fsdp, tensor]
  text = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise ValueError(f"mesh {text}: sizes are at least 1, and one of them may be -1 (the rest)")
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes:
    if num_devices % known:
      raise ValueError(f"mesh {text}: {known} does not divide the {num_devices} devices there are")
    sizes[sizes.index(-1)] = num_devices // known
  elif known != num_devices:
    raise ValueError(
      f"mesh {text} is of {known} devices, and there are {num_devices}; -1 takes all the rest"
    )
  return sizes[0], sizes[1], sizes[2]


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A (data, fsdp, tensor) mesh over `devices`, by default all of all hosts.

  Of several TPU slices each holds whole groups of `fsdp` and `tensor`: `data` goes across them.
  Raises ValueError for sizes that do not fit the devices.
  """
  devices = devices or jax.devices()
  sizes = mesh_sizes(data, fsdp, tensor, len(devices))
  text = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes))
  slices = num_slices(devices)
  if sizes[0] % slices:
    raise ValueError(
      f"mesh {text}: these devices are {slices} slices, and between slices the network is slow:"
      f" mesh.data must be a multiple of {slices}, so that weights and layers are split within a"
      f" slice only; set mesh.data={slices}"
    )
  if slices == 1:
    try:
      return jax.make_mesh(sizes, MESH_AXES, axis_types=_AXIS_TYPES, devices=devices)
    except NotImplementedError:  # no axis of the torus, nor several, are of these sizes
      pass
  try:
    grid = _grid(sizes, slices, devices)
  except NotImplementedError:
    raise ValueError(f"mesh {text} cannot be laid over {len(devices)} of these devices") from None
  return Mesh(grid, MESH_AXES, axis_types=_AXIS_TYPES)


def num_slices(devices: Sequence[jax.Device]) -> int:
  """TPU slices that the devices are of: links join those of one, the hosts' network the slices.

  1 for other devices. GPUs of several hosts, which JAX calls slices too, may split weights across
  hosts: there the network is what there is.
  """
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def _grid(sizes: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices of a mesh whose first axis goes over the slices; axes of a torus may be split.

  Raises NotImplementedError where that does not help either.
  """
  if slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  data, *rest = sizes
  inside = (data // slices, *rest)
  lay = functools.partial(mesh_utils.create_hybrid_device_mesh, inside, (slices, 1, 1), devices)
  try:
    return lay()
  except NotImplementedError:
    return lay(allow_split_physical_axes=True)


def abstract_mesh(data: int, fsdp: int, tensor: int, num_devices: int) -> AbstractMesh:
  """A mesh of devices that are not there: for shapes and bytes, not for programs."""
  return AbstractMesh(mesh_sizes(data, fsdp, tensor, num_devices), MESH_AXES, _AXIS_TYPES)


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
  """Devices that the rows of a batch are split over: data x fsdp."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Asks for `x` to be laid out by the table; nothing happens where no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition(*logical_axes))


def partition(*logical_axes: str | None) -> PartitionSpec:
  """The table's layout of an array with these dimensions."""
  return PartitionSpec(*(RULES[name] if name else None for name in logical_axes))


def param_shardings(mesh: Mesh | AbstractMesh, boxed_params: Any) -> Any:
  """Shardings of a parameter tree from the logical names its leaves carry.

  boxed_params: the (abstract) output of `Module.init`, names still on. Raises ValueError naming the
  parameter that the mesh does not divide.
  """

  def sharding(path, leaf) -> NamedSharding:
    names = leaf.names if isinstance(leaf, nn.Partitioned) else ()
    shape = leaf.value.shape if isinstance(leaf, nn.Partitioned) else leaf.shape
    spec = partition(*names)
    for size, axis, name in zip(shape, spec, names):
      parts = mesh.shape[axis] if axis else 1
      if size % parts:
        hint = "; model.vocab_multiple pads it" if name == axes.VOCAB else ""
        raise ValueError(
          f"mesh.{axis}={parts} does not divide the {name} dimension ({size}) of"
          f" {jax.tree_util.keystr(path, simple=True, separator='/')}{hint}"
        )
    return NamedSharding(mesh, spec)

  is_box = lambda leaf: isinstance(leaf, nn.Partitioned)
  return jax.tree_util.tree_map_with_path(sharding, boxed_params, is_leaf=is_box)


def bytes_per_device(tree: Any) -> int:
  """Bytes that one device holds of a tree of arrays, or of ShapeDtypeStructs with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
