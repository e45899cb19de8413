"""One question, several answers: `attend` picks the backend once, by shape and mask."""

from __future__ import annotations

import jax

from gptneo_jax.attention import blocked, reference
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec

BACKENDS = {"reference": reference.attend, "blocked": blocked.attend}

_SHORT = 128  # tokens up to which all scores at once are no more than a block or two


def resolve(impl: str, length: int) -> str:
  """Name of the backend that serves `impl`; ValueError if it cannot.

  'auto' takes the blocks where there is something to save: a sequence beyond a few blocks.
  """
  if impl == "auto":
    return "blocked" if length > _SHORT else "reference"
  if impl not in BACKENDS:
    raise ValueError(f"unknown attention backend {impl!r}; there are: auto, {', '.join(BACKENDS)}")
  return impl


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  *,
  scale: float,
  impl: str = "auto",
  dropout: Dropout | None = None,
) -> jax.Array:
  """Multi-head self-attention, B x T x H x K, in the type of v; see `MaskSpec` for the mask."""
  if not q_BxTxHxK.shape == k_BxTxHxK.shape == v_BxTxHxK.shape:
    raise ValueError(
      f"q, k and v differ in shape: {q_BxTxHxK.shape}, {k_BxTxHxK.shape}, {v_BxTxHxK.shape}"
    )
  backend = BACKENDS[resolve(impl, q_BxTxHxK.shape[1])]
  return backend(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec, scale, dropout)
