"""One question, several answers: `attend` picks the backend once, by shape and mask."""

from __future__ import annotations

import jax

from gptneo_jax.attention import local, reference
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec

BACKENDS = {"reference": reference.attend, "local": local.attend}


def resolve(impl: str, length: int, window: int | None) -> str:
  """Name of the backend that serves `impl`; ValueError if it cannot.

  'auto' takes the blocked window where the window is shorter than the sequence. Where it is not,
  a local layer is a global one and blocks would only waste work.
  """
  if impl == "auto":
    return "local" if window is not None and window < length else "reference"
  if impl not in BACKENDS:
    raise ValueError(f"unknown attention backend {impl!r}; there are: auto, {', '.join(BACKENDS)}")
  if impl == "local" and window is None:
    raise ValueError(
      "attention backend 'local' serves windowed layers only, and this one is global"
    )
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
  backend = BACKENDS[resolve(impl, q_BxTxHxK.shape[1], spec.window)]
  return backend(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec, scale, dropout)
