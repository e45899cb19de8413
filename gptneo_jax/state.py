"""The state of a training run: as shapes with shardings, and fresh on a mesh."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gptneo_jax.model import lora, methods
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.methods import FULL, Method, Parts
from gptneo_jax.model.parameters import abstract_params, init_params


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes, and what it reads beside that."""

  step: jax.Array  # int32, batches taken: updates done, and steps skipped
  params: Any  # what learns
  opt_state: Any
  rng: jax.Array  # raw key data, uint32; dropout of step n comes from fold_in(rng, n)
  frozen: Any = flax.struct.field(default_factory=dict)  # the rest of the model
  history: Any = flax.struct.field(default_factory=dict)  # of a step's guard (`steps.Guard`)

  @property
  def model_params(self) -> Any:
    """The model: what losses and evaluations take."""
    return lora.combine(self.frozen, self.params)


def _init(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  method: Method,
  seed: int,
  params: Any = None,
) -> TrainState:
  params_key, rng = jax.random.split(jax.random.key(seed))
  params = init_params(model, params_key) if params is None else params
  learned, frozen = methods.split(method, model.config, params, _factors_key(seed))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=learned,
    opt_state=optimizer.init(learned),
    rng=jax.random.key_data(rng),
    frozen=frozen,
  )


def _factors_key(seed: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), 1)


def abstract_state(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  mesh: Mesh | AbstractMesh,
  method: Method = FULL,
) -> TrainState:
  """The state as ShapeDtypeStructs with shardings: what restoring and memory estimates need.

  An optimizer leaf with the path and the shape of a parameter is sharded like it; others (scalars,
  Adafactor's factors) are replicated. Raises ValueError as `methods.split`.
  """
  plain = abstract_params(model, mesh)
  parts = methods.abstract_split(method, model.config, plain, mesh)
  shapes = jax.eval_shape(lambda params: _init(model, optimizer, method, 0, params), plain)
  replicated = NamedSharding(mesh, PartitionSpec())
  by_path = {
    _path(path): (leaf.shape, leaf.sharding)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts.learned)
  }

  def annotate(path, leaf):
    names = _path(path)
    for start in range(len(names)):
      shape, sharding = by_path.get(names[start:], (None, replicated))
      if shape == leaf.shape:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

  state = jax.tree_util.tree_map_with_path(annotate, shapes.replace(params={}, frozen={}))
  return state.replace(params=parts.learned, frozen=parts.frozen)


def _path(path) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def init_state(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  seed: int,
  method: Method = FULL,
  params: Any = None,
) -> TrainState:
  """A fresh state, initialised sharded: no device ever holds more than its part.

  params: of the model, to start from, not to be used any more; None: random ones.
  """
  state = abstract_state(model, optimizer, mesh, method)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  make = lambda params: _init(model, optimizer, method, seed, params)
  return jax.jit(make, out_shardings=shardings, donate_argnums=_donated(method))(params)


def init_model(model: Decoder, mesh: Mesh, seed: int) -> Any:
  """The random parameters that `init_state` starts from."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(model, mesh))
  make = lambda: init_params(model, jax.random.split(jax.random.key(seed))[0])
  return jax.jit(make, out_shardings=shardings)()


def place_parts(model: Decoder, method: Method, mesh: Mesh, seed: int, params: Any) -> Parts:
  """A model's parameters as `init_state` splits them; they are not to be used any more."""
  abstract = abstract_params(model, mesh)
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, methods.abstract_split(method, model.config, abstract, mesh)
  )
  cut = lambda params: methods.split(method, model.config, params, _factors_key(seed))
  return jax.jit(cut, out_shardings=shardings, donate_argnums=_donated(method))(params)


def _donated(method: Method) -> tuple[int, ...]:
  """Which argument's memory becomes the result's: not that of kernels that get smaller."""
  return () if method.lora is not None and method.lora.base else (0,)
