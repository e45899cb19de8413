"""What is asked of a backend: all that decides whether it can serve."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec


class Hardware(NamedTuple):
  """What a computation is compiled for.

  platform: 'cpu', 'gpu' or 'tpu'.
  capability: of an NVIDIA card, (7, 5) for a T4; None where there is none or it is not known.
  """

  platform: str
  capability: tuple[int, int] | None = None

  def __str__(self) -> str:
    if self.capability is None:
      return self.platform
    return f"{self.platform} of compute capability {'.'.join(map(str, self.capability))}"


def current_hardware() -> Hardware:
  """The devices of the mesh in use, which may be another machine's; without a mesh, the default.

  A mesh over the devices of a described topology names a TPU where there is none: a program for it
  can be compiled on any machine.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  here = jax.devices()
  if device is None:
    device = here[0]
  same = [d for d in here if d.platform == device.platform and d.device_kind == device.device_kind]
  capability = re.fullmatch(
    r"(\d+)\.(\d+)", getattr(same[0], "compute_capability", "") if same else ""
  )
  major_minor = (int(capability[1]), int(capability[2])) if capability else None
  return Hardware(device.platform, major_minor)


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
