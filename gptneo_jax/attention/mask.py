"""Which keys a query sees, as a description: backends build only the blocks that they need."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

# The score or logit, float32, of what has no probability: finite, so that no row turns into NaN.
MASKED = float(jnp.finfo(jnp.float32).min)


@functools.partial(
  jax.tree_util.register_dataclass, meta_fields=["window"], data_fields=["segment_ids_BxT"]
)
@dataclasses.dataclass(frozen=True)
class MaskSpec:
  """Causal self-attention, possibly through a window, possibly within segments.

  window: number of keys a query sees, itself included (key j of query i: i - window < j <= i);
    None for all keys up to its own. Source: transformers' modeling_gpt_neo and Mesh-TensorFlow's
    `local_attention_1d`, which agree.
  segment_ids_BxT: int32; a query sees only keys of its own segment. Left or right padding is a
    segment of its own. Every query sees itself, so no row of scores is masked entirely.
  """

  window: int | None = None
  segment_ids_BxT: jax.Array | None = None

  def __post_init__(self):
    if self.window is not None and self.window < 1:
      raise ValueError(f"window is {self.window}; a query must see at least itself")

  def dense_Bx1xTxT(self, length: int) -> jax.Array:
    """The mask in full, bool, B x 1 x T x T (B is 1 without segments). O(T^2): reference only."""
    query_T, key_T = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    visible = key_T <= query_T
    if self.window is not None:
      visible &= key_T > query_T - self.window
    visible = visible[None, None]
    if self.segment_ids_BxT is not None:
      segments = self.segment_ids_BxT
      visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    return visible
