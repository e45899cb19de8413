"""Kernels on a mesh: XLA cannot split them, so `shard_map` gives each device its part."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from gptneo_jax.attention.mask import MaskSpec

Kernel = Callable[[jax.Array, jax.Array, jax.Array, MaskSpec], jax.Array]


def per_device(
  kernel: Kernel,
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  partition: PartitionSpec | None,
) -> jax.Array:
  """Runs a kernel on each device's rows and heads; nothing is exchanged between devices.

  partition: of q, k and v over the axes of the mesh in use, (batch, None, heads, None). A dimension
  that the mesh does not divide is replicated. Without a mesh or a partition the kernel is called
  on the arrays as they are.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or partition is None:
    return kernel(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec)
  partition = _divisible(partition, q_BxTxHxK.shape, mesh)

  def part(q, k, v, segment_ids):
    return kernel(q, k, v, MaskSpec(spec.window, segment_ids))

  return jax.shard_map(
    part,
    mesh=mesh,
    in_specs=(partition, partition, partition, PartitionSpec(partition[0], None)),
    out_specs=partition,
    check_vma=False,  # a kernel does not say over which axes its results vary
  )(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec.segment_ids_BxT)


def _divisible(
  partition: PartitionSpec, shape: tuple[int, ...], mesh: AbstractMesh
) -> PartitionSpec:
  def ways(axes) -> int:
    return math.prod(mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))

  return PartitionSpec(
    *(axes if axes and size % ways(axes) == 0 else None for axes, size in zip(partition, shape))
  )
