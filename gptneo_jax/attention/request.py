"""A layer's attention as it decides which backends can compute it."""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

import jax

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.hardware import Hardware, current_hardware


class AttentionRequest(NamedTuple):
  """The attention of one layer: length in tokens, window as in `MaskSpec` (None: global).

  segments, dropout: whether the mask has segments, whether probabilities are dropped.
  """

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


def request_of(q_BxTxHxK: jax.Array, spec: MaskSpec, dropout: Dropout | None) -> AttentionRequest:
  """The request that these arguments of `attend` make, on the hardware in use."""
  return AttentionRequest(
    length=q_BxTxHxK.shape[1],
    window=spec.window,
    head_dim=q_BxTxHxK.shape[3],
    dtype=q_BxTxHxK.dtype.name,
    segments=spec.segment_ids_BxT is not None,
    dropout=dropout is not None,
    hardware=current_hardware(),
  )


@functools.cache
def import_error(module: str) -> str | None:
  """Why a module that a kernel needs cannot be imported, None if it can.

  Kernels use parts of jax that are private or made for one platform: another version of jax may
  lack them, and then the other backends serve.
  """
  try:
    importlib.import_module(module)
  except ImportError as error:
    return f"it needs {module}, which cannot be imported here: {error}"
  return None
