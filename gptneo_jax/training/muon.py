"""Muon on parameters stacked over layers: which axes make a matrix, and what Adam updates."""

import functools
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

# Axes of a block's kernels, stacked over layers, that a matrix product sums over, and those of its
# result; Muon makes each matrix's update orthogonal. optax's default, "whatever has two axes",
# would choose embeddings, biases and norms, and no kernel.
_AXES = {
  "attn/q/kernel": MuonDimensionNumbers(1, (2, 3)),
  "attn/k/kernel": MuonDimensionNumbers(1, (2, 3)),
  "attn/v/kernel": MuonDimensionNumbers(1, (2, 3)),
  "attn/out/kernel": MuonDimensionNumbers((1, 2), 3),
  "mlp/c_fc/kernel": MuonDimensionNumbers(1, 2),
  "mlp/c_proj/kernel": MuonDimensionNumbers(1, 2),
}
_MOMENTUM = 0.95
# Root mean square of an orthogonal update, about what Adam's has, so that one learning rate and one
# weight decay do for all parameters (Liu et al., 2025, arXiv:2502.16982).
_RMS = 0.2


def _axes(path: tuple) -> MuonDimensionNumbers | None:
  return _AXES.get(jax.tree_util.keystr(path[-3:], simple=True, separator="/"))


def labels(params: Any) -> Any:
  """A tree like `params`: 'muon' for the kernels of blocks, 'adam' for all else."""
  label = lambda path, _: "adam" if _axes(path) is None else "muon"
  return jax.tree_util.tree_map_with_path(label, params)


def check_learned(name: str, learned: Any) -> None:
  """Raises ValueError for an optimiser that has nothing to do with what learns."""
  if name == "muon" and "muon" not in jax.tree.leaves(labels(learned)):
    raise ValueError(
      "optimizer.name is 'muon', which is for the kernels of blocks, and none of these learns;"
      " take 'adamw'"
    )


def scale_by_muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Muon's direction (Jordan, 2024) for the kernels of blocks, layer by layer; elsewhere Adam's.

  b1, b2, eps: Adam's. The momentum is a tree like the kernels, of the gradients' type.
  """

  def scaled(path: tuple, x: jax.Array) -> jax.Array:
    axes = _axes(path)
    assert axes is not None, path
    inputs, outputs = (np.prod(np.take(x.shape, group)) for group in axes)
    return _RMS * max(inputs, outputs) ** 0.5 * x

  axes_of = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: _axes(path))
  scale = lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)
  muon = optax.chain(
    optax.contrib.scale_by_muon(beta=_MOMENTUM, weight_dimension_numbers=axes_of),
    optax.stateless(scale),
  )
  return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)
