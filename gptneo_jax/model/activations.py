"""The MLP's activation functions, by the names that Hugging Face's configs give them.

Source: transformers' activations.py. Two of its names are left out: prelu and xielu have parameters
of their own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

_LAPLACE_MEAN, _LAPLACE_STDDEV = 0.707107, 0.282095


def _gelu(x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=False)


def _clipped_gelu(x: jax.Array) -> jax.Array:
  return jnp.clip(_gelu(x), -10.0, 10.0)


def _relu6(x: jax.Array) -> jax.Array:
  return jnp.where(x < 6.0, jax.nn.relu(x), 6.0)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu_new": jax.nn.gelu,  # by tanh: GPT-2's own
  "gelu": _gelu,
  "gelu_10": _clipped_gelu,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "relu6": _relu6,
  "leaky_relu": lambda x: jnp.where(x > 0.0, x, 0.01 * x),
  "silu": jax.nn.silu,
  "hardswish": lambda x: x * _relu6(x + 3.0) / 6.0,
  "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
  "linear": lambda x: x,
  "laplace": lambda x: (
    0.5 * (1.0 + jax.lax.erf((x - _LAPLACE_MEAN) / (_LAPLACE_STDDEV * math.sqrt(2.0))))
  ),
  "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
}

# Other names of the same functions.
ALIASES = {
  "gelu_fast": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
  "gelu_python_tanh": "gelu_new",
  "gelu_accurate": "gelu_new",
  "gelu_python": "gelu",
  "swish": "silu",
}


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def activate(x: jax.Array, name: str) -> jax.Array:
  """ACTIVATIONS[name] in float32, because constants rounded to 16 bits are off at every token.

  Differentiation keeps x alone: computing the rest again is cheaper than storing it in float32.
  """
  return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)
