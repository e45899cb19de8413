"""A model's parameter tree: its first values, and its shapes without values."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from gptneo_jax.model.decoder import Decoder
from gptneo_jax.sharding import param_shardings


def init_params(model: Decoder, key: jax.Array) -> Any:
  """Random parameters, by the config's initializer. Under jit they take the shardings asked for."""
  return nn.unbox(model.init(key, _ids()))["params"]


def abstract_params(model: Decoder, mesh: Mesh | AbstractMesh | None = None) -> Any:
  """The parameters as ShapeDtypeStructs, with their shardings where a mesh is given.

  Raises ValueError naming the parameter that the mesh does not divide.
  """
  boxed = _boxed(model)  # pyrefly: ignore[bad-argument-type]  flax hashes modules by their fields
  if mesh is None:
    return nn.unbox(boxed)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    nn.unbox(boxed),
    param_shardings(mesh, boxed),
  )


@functools.lru_cache(maxsize=16)  # a start asks for them four times, and traces the model for it
def _boxed(model: Decoder) -> Any:
  return jax.eval_shape(model.init, jax.random.key(0), _ids())["params"]


def _ids() -> jax.Array:
  return jnp.zeros((1, 1), jnp.int32)  # no parameter's shape depends on the batch
