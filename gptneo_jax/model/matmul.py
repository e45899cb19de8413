"""Products with weight matrices, and biases: what XLA compiles of them and of their gradients."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from gptneo_jax.hardware import current_hardware


def matmul(x: jax.Array, kernel: jax.Array, contracted: int = 1) -> jax.Array:
  """Contracts the last axes of x with the first of the kernel, as many as `contracted` says.

  The result has the type of x, which the kernel is rounded to. The kernel's gradient has the
  kernel's own type.

  The rows are flattened: of 2-D operands XLA on CPU takes the kernel's gradient as x^T·dy; of
  B x T x D it copies dy transposed first (experiments/bench_weight_gradient.py).
  """
  rows, inner, outer = x.shape[:-contracted], kernel.shape[:contracted], kernel.shape[contracted:]
  size = math.prod(inner)
  x_NxD, kernel_DxF = x.reshape(-1, size), kernel.reshape(size, -1)
  # Of two types a rule of our own, which has no forward mode: only where it pays.
  product = _plain if x.dtype == kernel.dtype else _rounded_kernel
  return product(x_NxD, kernel_DxF).reshape(rows + outer)


def _plain(x_NxD: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
  return x_NxD @ kernel_DxF.astype(x_NxD.dtype)


@jax.custom_vjp
def _rounded_kernel(x_NxD: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
  """The product with a kernel of more bits, whose gradient is accumulated in these.

  JAX's own rule gives bfloat16 computation a bfloat16 gradient, and then makes a float32 one of it.
  """
  return _plain(x_NxD, kernel_DxF)


def _forward(x_NxD, kernel_DxF):
  # Not `_rounded_kernel`: a rematerialisation policy must see a dot product, which it may keep.
  y_NxF = _plain(x_NxD.value, kernel_DxF.value)
  # A kernel that does not learn has no gradient, for which nothing is kept.
  return y_NxF, (x_NxD.value if kernel_DxF.perturbed else None, kernel_DxF.value)


def _backward(residuals, dy_NxF: Any):
  x_NxD, kernel_DxF = residuals
  if isinstance(dy_NxF, SymbolicZero):
    aval: Any = dy_NxF.aval
    dy_NxF = jnp.zeros(aval.shape, aval.dtype)
  dx_NxD = jax.lax.dot_general(dy_NxF, kernel_DxF.astype(dy_NxF.dtype), (((1,), (1,)), ((), ())))
  if x_NxD is None:
    return dx_NxD, None
  dkernel_DxF = jax.lax.dot_general(
    x_NxD, dy_NxF, (((0,), (0,)), ((), ())), preferred_element_type=kernel_DxF.dtype
  )
  return dx_NxD, dkernel_DxF


_rounded_kernel.defvjp(_forward, _backward, symbolic_zeros=True)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """y + bias, in the type of y; the bias has the last axes of y, and a gradient of its own type.

  On a GPU that gradient is summed from the gradient of y once it is in memory. Left to itself XLA
  sums while it computes that, and for gelu's, whose tanh it stores in float32 for it, one pass is
  slower than two. On TPU one pass is better: two read more memory, as the planner shows.
  """
  # Broadcast before it is rounded: so the rows of its gradient are summed in its own type.
  y += jnp.broadcast_to(bias, y.shape).astype(y.dtype)
  return _with_stored_gradient(y) if current_hardware().platform == "gpu" else y


@jax.custom_jvp
def _with_stored_gradient(y: jax.Array) -> jax.Array:
  return y


@_with_stored_gradient.defjvp
def _with_stored_gradient_jvp(primals, tangents):
  return primals[0], jax.lax.optimization_barrier(tangents[0])


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
