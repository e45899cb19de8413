"""LoRA: low-rank changes of some kernels, applied beside the weights or merged into them.

An adapter holds factors a (N, …in, r) and b (N, r, …out) for some kernels, in a tree of the
parameters' layout; N is the number of repeats of the scan over layers. A kernel changes by
scale · a·b. `collection` gives the factors to the model, which applies them beside frozen weights
(`Dense` in model/decoder.py); `merge` adds them to the weights. Source: Hu et al. 2021,
arXiv:2106.09685; PEFT's files are read and written by interop/peft_files.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Factors for some of a model's kernels.

  Attributes:
    scale: multiplies every product of factors: alpha / r.
    factors: nested dictionaries with {'a', 'b'} where the parameters have {'kernel'}.
    head: parameters of a head that was trained in full beside the factors, or None.
  """

  scale: float
  factors: dict[str, Any]
  head: dict[str, Any] | None = None

  def collection(self) -> dict[str, Any]:
    """For `model.apply({'params': …, 'lora': adapter.collection()}, …)`: the scale is in b."""
    return _map_pairs(lambda a, b: {"a": a, "b": self.scale * b}, self.factors)

  def pair(self, path: str) -> dict[str, Any] | None:
    """The factors {'a', 'b'} of the kernel at a path ('blocks/layer_0/attn/q/kernel'), or None."""
    node: Any = self.factors
    for key in path.split("/")[:-1]:
      node = node.get(key) if node else None
    return node


def merge(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
  """The parameters with the adapter added to them; a pure function of arrays, also under jit."""

  def add(node: Any, change: dict[str, Any]) -> Any:
    if set(change) == {"a", "b"}:
      return {**node, "kernel": _add(node["kernel"], change["a"], change["b"], adapter.scale)}
    return {**node, **{key: add(node[key], change[key]) for key in change}}

  merged = add(params, adapter.factors)
  if adapter.head is not None:
    merged["head"] = jax.tree.map(
      lambda new, old: jnp.asarray(new, old.dtype), adapter.head, params["head"]
    )
  return merged


def merge_slice(adapter: Adapter, path: str, index: int | None, array: np.ndarray) -> np.ndarray:
  """One slice of one parameter with the adapter added to it: `merge` without the model in memory.

  Args:
    path: of the parameter, 'blocks/layer_0/attn/q/kernel'.
    index: of the slice along the leading axis, the layers'; None for a parameter without it.
    array: the slice.
  """
  parent, _, name = path.rpartition("/")
  if parent == "head" and adapter.head is not None:
    return np.asarray(adapter.head[name], array.dtype)
  pair = adapter.pair(path)
  if not pair or name != "kernel":
    return array
  assert index is not None  # factors are of the layers' kernels
  a, b = (pair[side][index : index + 1] for side in "ab")
  return np.asarray(_add(array[None], a, b, adapter.scale))[0]


def _map_pairs(function, tree: dict[str, Any]) -> dict[str, Any]:
  if set(tree) == {"a", "b"}:
    return function(tree["a"], tree["b"])
  return {key: _map_pairs(function, node) for key, node in tree.items()}


def _add(kernel, a, b, scale: float):
  """kernel + scale · a·b of every layer, computed in float32."""
  N, r = a.shape[0], a.shape[-1]
  change = scale * jnp.einsum(
    "Nir,Nro->Nio",
    jnp.asarray(a, jnp.float32).reshape(N, -1, r),
    jnp.asarray(b, jnp.float32).reshape(N, r, -1),
    precision=jax.lax.Precision.HIGHEST,
  )
  return (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)
