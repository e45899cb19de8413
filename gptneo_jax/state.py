"""The state of a training run: as shapes with shardings, and fresh on a mesh."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.parameters import abstract_params, init_params


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes."""

  step: jax.Array  # int32, updates done
  params: Any
  opt_state: Any
  rng: jax.Array  # raw key data, uint32; dropout of step n comes from fold_in(rng, n)


def _init(model: Decoder, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  params_key, rng = jax.random.split(jax.random.key(seed))
  params = init_params(model, params_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    rng=jax.random.key_data(rng),
  )


def abstract_state(
  model: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
  """The state as ShapeDtypeStructs with shardings: what restoring and memory estimates need.

  An optimizer leaf with the path and the shape of a parameter is sharded like it; others (scalars,
  Adafactor's factors) are replicated.
  """
  shapes = jax.eval_shape(lambda: _init(model, optimizer, 0))
  replicated = NamedSharding(mesh, PartitionSpec())
  by_path = {
    _path(path): (leaf.shape, leaf.sharding)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(model, mesh))
  }

  def annotate(path, leaf):
    names = _path(path)
    for start in range(len(names)):
      shape, sharding = by_path.get(names[start:], (None, replicated))
      if shape == leaf.shape:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

  return jax.tree_util.tree_map_with_path(annotate, shapes)


def _path(path) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def init_state(
  model: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
  """A fresh state, initialised sharded: no device ever holds more than its part."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
  return jax.jit(lambda: _init(model, optimizer, seed), out_shardings=shardings)()
