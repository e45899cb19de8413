"""What is asked of a backend: all that decides whether it can serve."""

from __future__ import annotations

from typing import NamedTuple

import jax

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.hardware import Hardware, current_hardware


class Request(NamedTuple):
  """A layer's attention. length in tokens; window as in `MaskSpec`; the rest as it says."""

  length: int
  window: int | None = None
  head_dim: int = 64
  dtype: str = "float32"
  segments: bool = False
  dropout: bool = False
  hardware: Hardware = Hardware("cpu")

  @property
  def windowed(self) -> bool:
    """Whether the window hides any key: where it does not, a local layer is a global one."""
    return self.window is not None and self.window < self.length


def request_of(q_BxTxHxK: jax.Array, spec: MaskSpec, dropout: Dropout | None) -> Request:
  """The request that these arguments of `attend` make, on the hardware in use."""
  return Request(
    length=q_BxTxHxK.shape[1],
    window=spec.window,
    head_dim=q_BxTxHxK.shape[3],
    dtype=q_BxTxHxK.dtype.name,
    segments=spec.segment_ids_BxT is not None,
    dropout=dropout is not None,
    hardware=current_hardware(),
  )
