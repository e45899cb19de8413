"""Quantized weights for inference: 8 or 4 bits a weight, by qwix.

`quantize` replaces the matrices of unstacked parameters (generation/unstacked.py), the table of the
tied head included: by 8-bit integers and a scale for each output ('int8', 'w8a8'), or by 4-bit
integers and a scale for each output and group of 64 inputs ('int4'). 'w8a8' also rounds activations
to 8 bits with a scale for each token, so that its products are of integers. Norms, biases and
positions are left as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
import safetensors
import safetensors.numpy

from gptneo_jax.errors import UserError

MODES = ("int8", "w8a8", "int4")
_GROUP = 64  # inputs that share a scale, at 4 bits
_MATRICES = ("kernel", "wte", "lm_head")
_OUTPUT_AXES = {"qkv": 3}  # of a kernel; others have 1


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["activations"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A matrix, … outputs x inputs. activations: whether its products round them to 8 bits too."""

  weight: qwix.QArray
  activations: bool = False

  def matmul(self, x: jax.Array, dtype: Any) -> jax.Array:
    """W · x, … outputs x BT, for x of … inputs x BT."""
    x_DxBT = x.reshape(self.weight.shape[-1], x.shape[-1])
    # Tied to x: else XLA would dequantize once, before the loop, and keep the plain weights.
    weight, x_DxBT = jax.lax.optimization_barrier((self.weight, x_DxBT))
    numbers = (((weight.ndim - 1,), (0,)), ((), ()))
    if self.activations:
      x_DxBT = qwix.quantize(x_DxBT.astype(jnp.float32), jnp.int8, channelwise_axes=(1,))
      return qwix.dot_general(weight, x_DxBT, numbers).astype(dtype)
    if weight.scale.shape[-1] > 1:  # groups of inputs
      plain = qwix.dequantize(weight).astype(x.dtype)
      return jax.lax.dot_general(plain, x_DxBT, numbers, preferred_element_type=dtype)
    y = jax.lax.dot_general(
      weight.qvalue.astype(x.dtype), x_DxBT, numbers, preferred_element_type=jnp.float32
    )
    return (y * weight.scale).astype(dtype)

  def take_rows(self, ids: jax.Array) -> jax.Array:
    """The rows of a table with these ids, … x inputs."""
    taken = jax.tree.map(lambda x: jnp.take(x, ids, axis=0), self.weight)
    return qwix.dequantize(taken)


def quantize(unstacked_params: dict[str, Any], mode: str) -> dict[str, Any]:
  """The parameters with their matrices quantized. Raises UserError for an unknown mode."""
  if mode not in MODES:
    raise UserError(f"quantization {mode!r}; there are {', '.join(MODES)}")

  def visit(path: tuple, x: jax.Array) -> Any:
    names = [getattr(key, "key", "") for key in path]
    if names[-1] not in _MATRICES:
      return x
    outputs = _OUTPUT_AXES.get(names[-2], 1) if len(names) > 1 else 1
    return _quantized(x.reshape(*x.shape[:outputs], -1), mode)

  return jax.tree_util.tree_map_with_path(visit, unstacked_params)


@functools.partial(jax.jit, static_argnames="mode")
def _quantized(x: jax.Array, mode: str) -> Quantized:
  x, outputs = x.astype(jnp.float32), tuple(range(x.ndim - 1))
  if mode != "int4":
    return Quantized(qwix.quantize(x, jnp.int8, channelwise_axes=outputs), mode == "w8a8")
  group = _GROUP if x.shape[-1] % _GROUP == 0 else x.shape[-1]
  return Quantized(
    qwix.quantize(x, jnp.int4, channelwise_axes=outputs, tiled_axes={x.ndim - 1: group})
  )


def dequantize(quantized_params: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
  """Quantized parameters as plain arrays, in the shapes and types of `like`."""

  def visit(x: Any, plain: Any) -> jax.Array:
    if isinstance(x, Quantized):
      x = qwix.dequantize(x.weight)
    return x.reshape(plain.shape).astype(plain.dtype)

  return jax.tree.map(visit, quantized_params, like, is_leaf=lambda x: isinstance(x, Quantized))


def size(quantized_params: dict[str, Any]) -> int:
  """Bytes of the weights on disk, two 4-bit integers in one."""
  return sum(
    x.size // 2 if x.dtype == jnp.int4 else x.size * x.dtype.itemsize
    for x in jax.tree.leaves(quantized_params)
  )


# --- on disk --------------------------------------------------------------------------------------


def save(path: pathlib.Path, quantized_params: dict[str, Any], mode: str) -> None:
  """Writes the parameters to a safetensors file, with the mode in its metadata."""
  tensors = {}
  for keys, x in jax.tree_util.tree_leaves_with_path(quantized_params):
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    tensors[name] = _packed(np.asarray(x)) if x.dtype == jnp.int4 else np.asarray(x)
  metadata = {"format": "gptneo_jax", "quantisation": mode}
  safetensors.numpy.save_file(tensors, path, metadata)


def mode_of(path: pathlib.Path) -> str:
  """The mode that a file of weights is quantized in. Raises UserError."""
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      mode = (file.metadata() or {}).get("quantisation")
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is damaged: {error}") from None
  if mode not in MODES:
    raise UserError(f"{path} holds weights quantized as {mode!r}; there are {', '.join(MODES)}")
  return mode


def load(path: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Reads the parameters in a file, with the shapes and types of `like`. Raises UserError."""

  def visit(keys: tuple, plain: Any) -> jax.Array:
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    if name not in tensors:
      raise UserError(f"{path} holds no {name}")
    array = tensors[name]
    array = _unpacked(array) if plain.dtype == jnp.int4 else array
    if array.shape != plain.shape or array.dtype != plain.dtype:
      raise UserError(
        f"{path}: {name} is {array.dtype} {array.shape}, but the model takes {plain.dtype}"
        f" {plain.shape}"
      )
    return jnp.asarray(array)

  try:
    tensors = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is damaged: {error}") from None
  return jax.tree_util.tree_map_with_path(visit, like)


def _packed(x: np.ndarray) -> np.ndarray:
  """Two 4-bit integers in a byte, the first in the lower half."""
  pairs = x.astype(np.int8).view(np.uint8).reshape(*x.shape[:-1], -1, 2)
  return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def _unpacked(x: np.ndarray) -> np.ndarray:
  halves = np.stack([x & 15, x >> 4], axis=-1).astype(np.int8)
  return ((halves ^ 8) - 8).reshape(*x.shape[:-1], -1).astype(jnp.int4)
