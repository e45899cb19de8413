"""Topologies to plan and compile for: 'v5e:2x4', 't4:1', or the devices that are here."""

from __future__ import annotations

import difflib
import importlib.util
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from gptneo_jax import hardware
from gptneo_jax.errors import UserError, first_line
from gptneo_jax.hardware import CHIPS, Chip

HERE = "here"

# libtpu compiles without a TPU. These keep it from looking for one, from a lock that would let only
# one process in, and from complaints and log files about a machine it does not run on.
_LIBTPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_LOG_DIR": "disabled",
}


class Topology(NamedTuple):
  """Chips of one kind, in a shape.

  chip: None where the table does not know what is here. devices: to compile for; () where that
  cannot be done from here, as for GPUs.
  """

  name: str
  chip: Chip | None
  shape: str
  devices: tuple[jax.Device, ...]

  @property
  def size(self) -> int:
    return len(self.devices) or hardware.num_chips(self.shape)


def find(name: str) -> Topology:
  """The topology called `name`: CHIP:SHAPE of a TPU, GPU:NUMBER, or 'here'.

  Raises UserError with the nearest names if there is none, and if a TPU is asked for and the
  compiler for it is not installed.
  """
  if name == HERE:
    devices = tuple(jax.devices())
    return Topology(name, hardware.find_chip(devices[0].device_kind), str(len(devices)), devices)
  family, _, shape = name.lower().partition(":")
  chip = CHIPS.get(family)
  if chip is None:
    raise UserError(f"unknown topology {name!r}; {_nearest(name)}")
  if not chip.is_tpu:
    count = shape or "1"
    if not count.isdigit() or int(count) < 1:
      raise UserError(f"unknown topology {name!r}: {family}:N is N of them, {family}:8 for example")
    return Topology(f"{family}:{count}", chip, count, ())
  if shape not in chip.shapes:
    raise UserError(f"unknown topology {name!r}; {_nearest(name, family)}")
  return Topology(f"{family}:{shape}", chip, shape, _tpu_devices(chip, shape))


def names() -> list[str]:
  """Every TPU topology, and one of each GPU."""
  return [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.shapes or ("1",)]


def larger(topology: Topology) -> list[str]:
  """Topologies of the same chip with more of them, smallest first."""
  if topology.chip is None or topology.name == HERE:
    return []
  if not topology.chip.is_tpu:
    counts = (2**i for i in range(7))
    return [f"{topology.chip.name}:{n}" for n in counts if n > topology.size]
  shapes = topology.chip.shapes
  return [f"{topology.chip.name}:{s}" for s in shapes if hardware.num_chips(s) > topology.size]


def _nearest(name: str, family: str = "") -> str:
  known = [one for one in names() if one.startswith(family)]
  if family:
    return f"there are {', '.join(known)}"
  near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or ["v5e:2x4"]
  return f"near it: {', '.join(near)}; the chips are {', '.join(CHIPS)}"


def _tpu_devices(chip: Chip, shape: str) -> tuple[jax.Device, ...]:
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"compiling for {chip.name}:{shape} needs TPU's compiler (no TPU):"
      " pip install 'gptneo_jax[tpu]'"
    )
  for variable, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options: dict[str, Any] = {}
  if hardware.num_chips(shape) == 1:
    options["chips_per_host_bounds"] = [1, 1, 1]  # less than a host
  if chip.name == "v4":
    options["chip_config_name"] = "megacore"  # one device a chip, as v4 runs
  try:
    return tuple(topologies.get_topology_desc(f"{chip.name}:{shape}", "tpu", **options).devices)
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    raise UserError(f"{chip.name}:{shape}: {first_line(error)}") from None
