"""Learning rates that differ between parameters: by pattern, and by layer.

`optimizer.rates` is PATTERN=FACTOR,…: regular expressions over the paths of what learns
('blocks/layer_0/attn/q/kernel'); the first that matches somewhere in a path gives the factor.
`optimizer.layer_decay` multiplies the rate by itself for each layer from the top down: the last
block has the decay once, the first as often as there are layers, embeddings once more; the final
norm and the heads have the full rate (BERT's and BEiT's recipe). Weight decay follows the rate.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptneo_jax.model.methods import paths

_PLACE = re.compile(r"blocks/layer_(\d+)/")  # of a layer in the attention pattern


def parse(rates: str) -> list[tuple[str, float]]:
  """The patterns with their factors. Raises ValueError naming what is wrong."""
  found = []
  for part in filter(None, (part.strip() for part in rates.split(","))):
    pattern, _, text = part.rpartition("=")
    try:
      factor = float(text)
      re.compile(pattern)
    except (ValueError, re.error):
      factor = -1.0
    if not (pattern and 0 <= factor < float("inf")):
      raise ValueError(
        f"optimizer.rates has {part!r}; it must be PATTERN=FACTOR, a regular expression and a"
        " number from 0 on"
      )
    found.append((pattern, factor))
  return found


def check(rates: str, learned: Any) -> None:
  """Raises ValueError for a pattern that matches nothing that learns."""
  there = paths(learned)
  for pattern, _ in parse(rates):
    if not any(re.search(pattern, path) for path in there):
      raise ValueError(
        f"optimizer.rates: {pattern!r} matches nothing that learns; what learns is"
        f" {', '.join(there)}"
      )


def factor_of(
  path: str, shape: tuple[int, ...], *, rates: str, layer_decay: float, num_layers: int
) -> jax.Array:
  """What multiplies a parameter's rate: a scalar, or one number for each of its stacked layers."""
  factor = next((f for pattern, f in parse(rates) if re.search(pattern, path)), 1.0)
  if path in ("wte", "wpe"):
    return jnp.float32(factor * layer_decay ** (num_layers + 1))
  if place := _PLACE.match(path):
    repeats = shape[0]
    layers = int(place[1]) + num_layers // repeats * jnp.arange(repeats)
    decays = factor * layer_decay ** (num_layers - layers).astype(jnp.float32)
    return decays.reshape(repeats, *[1] * (len(shape) - 1))
  return jnp.float32(factor)


def with_factors(
  inner: optax.GradientTransformation, **settings: Any
) -> optax.GradientTransformation:
  """The updates of `inner` times `factor_of` their parameters; its state is that of `inner`."""

  def update(updates, state, params=None):
    made, state = inner.update(updates, state, params)

    def scale(keys: tuple, x: jax.Array) -> jax.Array:
      path = jax.tree_util.keystr(keys, simple=True, separator="/")
      return x * factor_of(path, x.shape, **settings)

    return jax.tree_util.tree_map_with_path(scale, made), state

  return optax.GradientTransformation(inner.init, update)
