"""What a computation is compiled for, and what accelerators can do by their data sheets."""

from __future__ import annotations

import dataclasses
import math
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


# --- data sheets ----------------------------------------------------------------------------------

# Dense peak, TFLOP/s per JAX device: (16-bit floats, float32 as XLA multiplies it by default).
# Google Cloud TPU system architecture pages, per chip; a JAX device is one of two cores of v2, v3
# and 7x. float32 is multiplied in bfloat16 passes there. NVIDIA data sheets, without sparsity and
# with float32 accumulation: bfloat16, or float16 before Ampere; float32 is TF32 from Ampere on.
PEAK_TFLOPS = {
  "TPU v2": (22.5, 22.5),
  "TPU v3": (61.5, 61.5),
  "TPU v4": (275, 275),
  "TPU v4 lite": (138, 138),
  "TPU v5 lite": (197, 197),
  "TPU v5e": (197, 197),
  "TPU v5": (459, 459),  # what v5p reports
  "TPU v5p": (459, 459),
  "TPU v6 lite": (918, 918),
  "TPU v6e": (918, 918),
  "TPU7x": (1153.5, 1153.5),
  "P100": (18.7, 9.3),
  "V100": (125, 15.7),
  "V100-PCIE": (112, 14),
  "T4": (65, 8.1),
  "A10": (125, 62.5),
  "A10G": (70, 35),
  "A100": (312, 156),
  "A6000": (154.8, 77.4),
  "L4": (121, 60),
  "L40": (181, 90.5),
  "L40S": (362, 183),
  "H100": (989.4, 494.7),
  "H100 PCIe": (756, 378),
  "H100 NVL": (835, 417),
  "H200": (989.4, 494.7),
  "H200 NVL": (835, 417),
  "GH200": (989.4, 494.7),
  "B200": (2250, 1125),
  "RTX 3090": (71, 35.6),
  "RTX 4090": (165.2, 82.6),
  "RTX 5090": (209.5, 104.8),
  "RTX 6000 Ada": (364.2, 182.1),
}


def peak_flops(kind: str, itemsize: int) -> float | None:
  """Dense FLOP/s of a device of this kind in a type of `itemsize` bytes; None if not known."""
  known = [name for name in PEAK_TFLOPS if _is_kind(name, kind)]
  if not known:
    return None
  half, single = PEAK_TFLOPS[max(known, key=len)]
  return (half if itemsize == 2 else single) * 1e12


def _is_kind(name: str, kind: str) -> bool:
  """Whether "NVIDIA A100-SXM4-80GB" holds "A100" (yes) or "A10" (no): whole words only."""
  kind, name = (f" {text.lower().replace('-', ' ')} " for text in (kind, name))
  return name in kind


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator that can be planned for.

  Attributes:
    name: as `--topology` says it.
    kind: as JAX reports it (`device_kind`), or the part of it that PEAK_TFLOPS knows.
    memory_gib: what a program can have of the device's memory.
    hbm_gbytes: GB/s of that memory.
    link_gbytes: GB/s of one link to a neighbour, one way; 0: not known here.
    shapes: topologies there are, smallest first; (): not one to compile for.
    wraps: a dimension of the topology is a ring if it is a multiple of this.
    bfloat16: whether it computes in that type.
  """

  name: str
  kind: str
  memory_gib: float
  hbm_gbytes: float
  link_gbytes: float = 0.0
  shapes: tuple[str, ...] = ()
  wraps: int = 0
  bfloat16: bool = True

  @property
  def is_tpu(self) -> bool:
    return bool(self.shapes)

  def peak_flops(self, itemsize: int) -> float:
    peak = peak_flops(self.kind, itemsize)
    assert peak is not None, self.kind
    return peak

  def links_bytes_per_second(self, shape: str) -> float:
    """What the worst-placed chip of a topology can send a second, over all its links.

    A chip in a corner has one link along each dimension longer than 1, two where that is a ring.
    """
    dims = [int(size) for size in shape.split("x")]
    links = sum(2 if size % self.wraps == 0 else 1 for size in dims if size > 1)
    return links * self.link_gbytes * 1e9


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

# TPU. Memory: what the compiler allows a program (libtpu 0.0.42, in its error when one asks for
# more): the data sheet's 16, 32, 95, 32 GB less what the system keeps. Bandwidths, shapes and
# rings: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; a link one way is the "bidirectional
# inter-chip bandwidth" / 2 / the chip's 4 (2D) or 6 (3D) links. v4's link: Jouppi et al. 2023.
# NVIDIA: data sheets; memory is 90% of what nvidia-smi reports, as a run gets it with
# XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 (JAX takes 75% unless told).
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "TPU v4", 30.75, 1200, 50, _CUBES, wraps=4),
    Chip("v5e", "TPU v5 lite", 15.75, 819, 50, _FLAT, wraps=16),
    Chip("v5p", "TPU v5", 95.74, 2765, 100, _CUBES, wraps=4),
    Chip("v6e", "TPU v6 lite", 31.25, 1638, 100, _FLAT, wraps=16),
    Chip("t4", "T4", 0.9 * 15.0, 320, bfloat16=False),
    Chip("l4", "L4", 0.9 * 22.5, 300),
    Chip("a100", "A100", 0.9 * 40.0, 1555),
    Chip("a100-80gb", "A100", 0.9 * 80.0, 2039),
    Chip("h100", "H100", 0.9 * 79.6, 3350),
    Chip("h200", "H200", 0.9 * 140.4, 4800),
  )
}


def find_chip(kind: str) -> Chip | None:
  """The chip that a device of this kind is, if the table has it; a GPU by its name alone."""
  known = [chip for chip in CHIPS.values() if _is_kind(chip.kind, kind)]
  return max(known, key=lambda chip: len(chip.kind)) if known else None


def num_chips(shape: str) -> int:
  return math.prod(int(size) for size in shape.split("x"))
