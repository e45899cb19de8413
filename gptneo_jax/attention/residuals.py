"""What attention keeps for its backward pass, by names that a rematerialisation policy sees."""

from __future__ import annotations

import jax

RESIDUALS = "attention"  # the `checkpoint_name` of the output and of each row's log of the sum
# cuDNN's results have no such name: they are known by jax's primitive. The tests look for it in the
# traced kernel, for under another name rematerialisation would run the kernel twice in silence.
CUDNN_PRIMITIVE = "dot_product_attention_fwd_wrapper"
_named = jax.checkpoint_policies.save_only_these_names(RESIDUALS)


def residuals_saveable(primitive, *avals, **params) -> bool:
  """A policy of `jax.checkpoint` that keeps the results of attention.

  These are its output and, per row, the logarithm of the softmax's denominator: as much memory as
  q, and at long T the costliest part of a layer to recompute. The reference has no such residuals.
  """
  return primitive.name == CUDNN_PRIMITIVE or _named(primitive, *avals, **params)
