"""Products and biases: values, and gradients in the types they are promised in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.hardware import Hardware
from gptneo_jax.model import matmul

SHAPES = [
  ((3, 5, 8), (8, 6), 1),
  ((3, 5, 8), (8, 2, 3), 1),
  ((3, 5, 2, 4), (2, 4, 6), 2),
  ((7, 8), (8, 1), 1),
]


def arrays(x_shape, kernel_shape, x_dtype, kernel_dtype):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.standard_normal(x_shape), x_dtype),
    jnp.asarray(rng.standard_normal(kernel_shape), kernel_dtype),
  )


@pytest.mark.parametrize("x_shape, kernel_shape, contracted", SHAPES)
@pytest.mark.parametrize("kernel_dtype", ["float32", "float16"])
def test_product_and_gradients(x_shape, kernel_shape, contracted, kernel_dtype):
  """Against NumPy in float64; with a kernel of another type the rule is our own."""
  x, kernel = arrays(x_shape, kernel_shape, jnp.float32, kernel_dtype)
  y, pullback = jax.vjp(lambda x, k: matmul.matmul(x, k, contracted), x, kernel)
  x64, kernel64 = (np.asarray(a, np.float64) for a in (x, kernel))
  expected = np.tensordot(x64, kernel64, contracted)
  assert (y.dtype, y.shape) == (x.dtype, expected.shape)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)

  dy64 = np.random.default_rng(1).standard_normal(expected.shape)
  dx, dkernel = pullback(jnp.asarray(dy64, jnp.float32))
  outer = kernel.ndim - contracted
  into_x = np.tensordot(dy64, kernel64, (range(-outer, 0), range(contracted, kernel.ndim)))
  rows = range(x.ndim - contracted)
  into_kernel = np.tensordot(x64, dy64, (rows, rows))
  tolerance = 1e-5 if kernel_dtype == "float32" else 4e-3
  np.testing.assert_allclose(dx, into_x, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dkernel, into_kernel, rtol=tolerance, atol=tolerance)
  assert (dx.dtype, dkernel.dtype) == (x.dtype, kernel.dtype)


def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16():
  """A sum over 4096 rows of bfloat16 numbers, in float32 throughout."""
  x, kernel = arrays((4096, 3), (3, 5), jnp.bfloat16, jnp.float32)
  y, pullback = jax.vjp(matmul.matmul, x, kernel)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, x @ kernel.astype(jnp.bfloat16))
  dx, dkernel = jax.jit(pullback)(y)
  assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
  exact = np.asarray(x, np.float64).T @ np.asarray(y, np.float64)
  np.testing.assert_allclose(dkernel, exact, rtol=1e-5)
  assert (np.asarray(dkernel) != np.asarray(dkernel.astype(jnp.bfloat16))).any()


def test_forward_mode():
  """Where the types are the same; a kernel of its own type has a rule for reverse mode alone."""
  x, kernel = arrays((3, 5, 8), (8, 2, 3), jnp.float32, jnp.float32)
  bias, dbias = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)

  def layer(x, kernel, bias):
    return matmul.add_bias(matmul.matmul(x, kernel), bias)

  out, tangent = jax.jvp(layer, (x, kernel, bias), (2 * x, 3 * kernel, dbias))
  np.testing.assert_allclose(tangent, 5 * (out - bias[None, None]) + 0.5, rtol=1e-5, atol=1e-5)
  with pytest.raises(TypeError, match="custom_vjp"):
    jax.jvp(matmul.matmul, (x, kernel.astype(jnp.bfloat16)), (x, kernel.astype(jnp.bfloat16)))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradient_of_a_bias(monkeypatch, platform):
  """Of 3000 rows of bfloat16, in which a running sum would stop growing at 256."""
  monkeypatch.setattr(matmul, "current_hardware", lambda: Hardware(platform))
  y = jnp.ones((3, 1000, 2, 5), jnp.bfloat16)
  bias = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5)), jnp.float32)
  out, pullback = jax.vjp(matmul.add_bias, y, bias)
  assert out.dtype == y.dtype
  np.testing.assert_array_equal(out, y + jnp.broadcast_to(bias.astype(y.dtype), y.shape))
  dy, dbias = jax.jit(pullback)(y)
  assert (dy.dtype, dbias.dtype) == (y.dtype, bias.dtype)
  np.testing.assert_array_equal(dy, y)
  np.testing.assert_array_equal(dbias, np.full((2, 5), 3000.0))
  barrier = "opt-barrier" in jax.jit(pullback).lower(y).as_text("hlo")
  assert barrier == (platform == "gpu")  # the sum starts from a gradient that is stored
