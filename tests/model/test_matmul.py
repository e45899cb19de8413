"""Products and biases: gradients in the types they are promised in, whatever is compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.hardware import Hardware
from gptneo_jax.model import matmul


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradient_of_a_bias(monkeypatch, platform):
  """Of 3000 rows of bfloat16, in which a running sum would stop growing at 256."""
  monkeypatch.setattr(matmul, "current_hardware", lambda: Hardware(platform))
  y = jnp.ones((3, 1000, 2, 5), jnp.bfloat16)
  bias = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5)), jnp.float32)
  out, pullback = jax.vjp(matmul.add_bias, y, bias)
  assert out.dtype == y.dtype
  np.testing.assert_array_equal(out, y + bias.astype(y.dtype))
  dy, dbias = jax.jit(pullback)(y)
  assert (dy.dtype, dbias.dtype) == (y.dtype, bias.dtype)
  np.testing.assert_array_equal(dy, y)
  np.testing.assert_array_equal(dbias, np.full((2, 5), 3000.0))
