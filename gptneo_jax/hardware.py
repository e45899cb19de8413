"""What a computation is compiled for, where the best way to compute depends on it."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax


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
