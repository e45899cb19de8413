"""Frozen kernels in 8 or 4 bits, for training what stands beside them (QLoRA), by qwix.

A kernel (N, …in, …out) becomes integers of its shape with float32 scales: one for each output
('int8'), or for each output and group of 64 inputs ('int4'). A product dequantizes its kernel where
it is used, and so does its gradient: of a scan over layers one layer's plain weights exist at a
time, in the forward as in the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix

from gptneo_jax.model.matmul import matmul as plain_matmul

_GROUP = 64  # inputs that share a scale, at 4 bits


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["qvalue", "scale"], meta_fields=["packed"]
)
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
  """A stacked kernel as integers and scales.

  packed: two 4-bit integers are in a byte, neighbours along the last axis. JAX's own int4 arrays
    take a byte each on some backends, and compiled programs do not accept them on others.
  """

  qvalue: jax.Array
  scale: jax.Array
  packed: bool = False


def quantize(kernel: jax.Array, mode: str, input_axes: int) -> QuantizedKernel:
  """A stacked kernel in 'int8' or 'int4'; its first `input_axes` axes after the layers' are inputs.

  Groups lie along the last axis of inputs: of the heads' output, within a head.
  """
  kernel, last = kernel.astype(jnp.float32), input_axes
  if mode == "int8":
    outputs = (0, *range(last + 1, kernel.ndim))
    made = qwix.quantize(kernel, jnp.int8, channelwise_axes=outputs)
    return QuantizedKernel(made.qvalue, made.scale)
  size = kernel.shape[last]
  others = tuple(axis for axis in range(kernel.ndim) if axis != last)
  made = qwix.quantize(
    kernel, jnp.int4, channelwise_axes=others,
    tiled_axes={last: _GROUP if size % _GROUP == 0 else size},
  )  # fmt: skip
  integers = made.qvalue.astype(jnp.int8)
  if kernel.shape[-1] % 2:
    return QuantizedKernel(integers, made.scale)
  low, high = (integers[..., half::2].astype(jnp.uint8) for half in (0, 1))
  return QuantizedKernel((low & 15) | (high << 4), made.scale, packed=True)


def dequantize(kernel: QuantizedKernel) -> jax.Array:
  """The kernel in float32, stacked or a layer's."""
  integers = kernel.qvalue
  if kernel.packed:
    halves = jnp.stack([integers & 15, integers >> 4], axis=-1).astype(jnp.int8)
    integers = ((halves ^ 8) - 8).reshape(*integers.shape[:-1], -1)
  return qwix.dequantize(qwix.QArray(integers, kernel.scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: QuantizedKernel, contracted: int) -> jax.Array:
  """As `matmul.matmul`; the kernel is a constant to derivatives."""
  return plain_matmul(x, dequantize(kernel).astype(x.dtype), contracted)


def _forward(x, kernel, contracted):
  # Not `matmul`: a rematerialisation policy must see a dot product, which it may keep.
  return plain_matmul(x, dequantize(kernel).astype(x.dtype), contracted), kernel


def _backward(contracted: int, kernel: Any, dy: jax.Array):
  plain = dequantize(kernel).astype(dy.dtype)
  outputs = plain.ndim - contracted
  axes = (range(dy.ndim - outputs, dy.ndim), range(contracted, plain.ndim))
  return jax.lax.dot_general(dy, plain, (axes, ((), ()))), None


matmul.defvjp(_forward, _backward)
