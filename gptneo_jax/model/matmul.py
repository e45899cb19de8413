"""Products with weight matrices, and biases: what XLA is to make of them and of their gradients."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from gptneo_jax.hardware import current_hardware


@jax.custom_vjp
def matmul(x_MxD: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
  """x @ kernel, in the type of x, which the kernel is rounded to.

  The weight gradient is asked for as x^T·dy. JAX's own rule asks for (dy^T·x)^T, which XLA on CPU
  serves by copying dy transposed and by its slower product: experiments/bench_weight_gradient.py
  measures both. It is accumulated in the type of the kernel, so that bfloat16 computation gives
  float32 gradients to float32 weights without a rounding in between.
  """
  return _product(x_MxD, kernel_DxF)


def _product(x_MxD, kernel_DxF):
  return x_MxD @ kernel_DxF.astype(x_MxD.dtype)


def _forward(x_MxD, kernel_DxF):
  # Not `matmul`: a rematerialisation policy is to see a dot product, which it may keep.
  return _product(x_MxD, kernel_DxF), (x_MxD, kernel_DxF)


def _backward(residuals, dy_MxF):
  x_MxD, kernel_DxF = residuals
  dx_MxD = jax.lax.dot_general(dy_MxF, kernel_DxF.astype(dy_MxF.dtype), (((1,), (1,)), ((), ())))
  dkernel_DxF = jax.lax.dot_general(
    x_MxD, dy_MxF, (((0,), (0,)), ((), ())), preferred_element_type=kernel_DxF.dtype
  )
  return dx_MxD, dkernel_DxF


matmul.defvjp(_forward, _backward)


def contract(x: jax.Array, kernel: jax.Array, axes: int) -> jax.Array:
  """Contracts the last `axes` axes of x with the first of the kernel, as jnp.tensordot does."""
  rows, inner, outer = x.shape[: x.ndim - axes], kernel.shape[:axes], kernel.shape[axes:]
  size = math.prod(inner)
  y = matmul(x.reshape(-1, size), kernel.reshape(size, -1))
  return jnp.reshape(y, rows + outer)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """y + bias, in the type of y; the bias has the last axes of y, and a gradient of its own type.

  On a GPU that is summed from the gradient of y once it is there. Left to itself XLA sums while it
  computes that, and for gelu's, whose tanh it stores in float32 for it, one pass is slower than
  two. On TPU one pass is better: two read more memory, as the planner shows.
  """
  return y + bias.astype(y.dtype)


def _add_bias_forward(y, bias):
  return add_bias(y, bias), bias


def _add_bias_backward(bias, dy):
  if current_hardware().platform == "gpu":
    dy = jax.lax.optimization_barrier(dy)
  rows = tuple(range(dy.ndim - bias.ndim))
  return dy, dy.sum(rows, dtype=bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def exact_products(dtype: Any) -> contextlib.AbstractContextManager:
  """float32 products to float32's own digits, for a computation in `dtype`.

  JAX's default multiplies float32 in TF32 on NVIDIA cards and in bfloat16 on TPU: enough to train,
  but not what another library's logits can be compared with. JAX_DEFAULT_MATMUL_PRECISION, if it is
  set, decides instead.
  """
  asked_for = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
  if jnp.dtype(dtype) == jnp.float32 and asked_for is None:
    return jax.default_matmul_precision("highest")
  return contextlib.nullcontext()
