"""What the backward pass of a kernel needs of its forward pass, as a remat policy finds it."""

from __future__ import annotations

import jax

RESIDUALS = "attention"  # the name of a kernel's output and of its rows' logarithm of the sum
_named = jax.checkpoint_policies.save_only_these_names(RESIDUALS)


def residuals_saveable(primitive, *avals, **params) -> bool:
  """A policy of `jax.checkpoint`: keeps what makes running a kernel again needless.

  That is its output and, per row, the logarithm of the softmax's denominator: as much memory as q,
  for the dearest part of a layer to recompute at long T. The reference has no such residuals.
  """
  return primitive.name == "dot_product_attention_fwd_wrapper" or _named(
    primitive, *avals, **params
  )
