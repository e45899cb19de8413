"""A matrix product whose backward pass stays a plain matrix product on every backend."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


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
