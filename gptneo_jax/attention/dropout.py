"""Dropout of attention probabilities, for backends that hold them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
  """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate)."""

  rate: float
  key: jax.Array

  def __call__(self, probs: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(self.key, 1.0 - self.rate, probs.shape)
    return jnp.where(keep, probs / (1.0 - self.rate), jnp.zeros_like(probs))
