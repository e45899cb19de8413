"""Which settings make a run fit in memory that does not, least change first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gptneo_jax import sections, sharding
from gptneo_jax.errors import UserError
from gptneo_jax.state import TrainState
from gptneo_jax.topology import Topology

Changes = dict[str, Any]  # a setting, as --config.NAME=VALUE says it, to its value

_TRIES = 3  # compilations spent on settings that should fit


class Advice(NamedTuple):
  """Settings that fit on a topology, and the bytes that they need of each device there."""

  changes: Changes
  topology: str
  needed: float


class Estimates:
  """Bytes of a step on each device, worked out without compiling; remembers what is slow."""

  def __init__(self, config: ConfigDict):
    self._config = config
    self._states: dict[str, TrainState] = {}

  def __call__(self, changes: Changes, num_devices: int) -> dict[str, int]:
    """By part, for the config with `changes`. Raises UserError if it cannot run on so many."""
    config = apply(self._config, changes)
    parts = sections.read(config)
    with sections.user_errors():
      mesh = sharding.abstract_mesh(**config.mesh.to_dict(), num_devices=num_devices)
    sections.check_batch(config, mesh)
    key = repr((parts.model, config.optimizer.to_dict(), mesh.shape_tuple))
    if key not in self._states:
      self._states[key] = sections.layout(config, parts, mesh)
    return sections.step_bytes(config, parts, mesh, self._states[key])


def apply(config: ConfigDict, changes: Changes) -> ConfigDict:
  """A copy of the config with settings changed."""
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(changes)
  return copy.lock()


def find(
  config: ConfigDict, num_devices: int, fits: Callable[[Changes], bool], *, recipe: bool
) -> Changes | None:
  """The first changes with which the run fits, None if there are none.

  Tried in this order, each with those before it: the batch in more parts; activations computed
  again in the backward pass; weights and optimizer split over all devices. With recipe=False also
  what changes what is learnt: a smaller batch, Adafactor, weights in bfloat16. What turns out not
  to be needed is left out again.
  """
  levers: list[tuple[Changes, bool]] = [({}, False)]
  if config.model.remat != "full":
    levers.append(({"model.remat": "full"}, False))
  if num_devices > 1:
    levers.append(({"mesh.data": 1, "mesh.fsdp": -1}, False))
  if not recipe:
    levers.append(({}, True))
    if config.optimizer.name != "adafactor":
      levers.append(({"optimizer.name": "adafactor"}, True))
    if config.model.param_dtype == "float32":
      levers.append(({"model.param_dtype": "bfloat16"}, True))

  taken: Changes = {}
  for lever, smaller_batch in levers:
    taken |= lever
    for batch in _batches(apply(config, taken), num_devices, smaller_batch):
      if fits(taken | batch):
        return _needed(taken, batch, fits)
  return None


def _needed(taken: Changes, batch: Changes, fits: Callable[[Changes], bool]) -> Changes:
  """The changes without those that it fits without; the mesh's go together."""
  groups = [{name} for name in taken if not name.startswith("mesh.")]
  groups.append({name for name in taken if name.startswith("mesh.")})
  for group in groups:
    fewer = {name: value for name, value in taken.items() if name not in group}
    if group and fits(fewer | batch):
      taken = fewer
  return taken | batch


def _batches(config: ConfigDict, num_devices: int, smaller: bool) -> Iterator[Changes]:
  """The batch as it is, in more and more parts, and if asked smaller and smaller in one part."""
  try:
    sizes = sharding.mesh_sizes(**config.mesh.to_dict(), num_devices=num_devices)
  except ValueError:
    return
  ways = sizes[0] * sizes[1]
  rows = config.batch_size // ways  # of a device
  yield {}
  for parts in range(config.grad_accumulation + 1, rows + 1):
    if rows % parts == 0:
      yield {"grad_accumulation": parts}
  if smaller:
    least = math.lcm(ways, config.data.num_streams or 1)
    batch = 2 ** math.floor(math.log2(max(config.batch_size / least, 1))) * least
    while batch >= least:
      if batch < config.batch_size or config.grad_accumulation > 1:
        yield {"batch_size": batch, "grad_accumulation": 1}
      batch //= 2


def fitting(estimates: Estimates, num_devices: int, available: float) -> Callable[[Changes], bool]:
  """Whether the estimate for some changes is within `available` bytes; False if they cannot run."""

  def fits(changes: Changes) -> bool:
    try:
      return sum(estimates(changes, num_devices).values()) <= available
    except UserError:
      return False

  return fits


def settings(
  config: ConfigDict,
  target: Topology,
  budget: float,
  *,
  estimates: Estimates,
  recipe: bool,
  fits: Callable[[ConfigDict, Topology], float | None] | None,
) -> Advice | None:
  """The first changes that `find` has for a budget of estimated bytes, proved if `fits` can.

  fits: compiles a config; returns the bytes it needs, None if they are not there. What fails is
  followed by settings of a smaller estimate.
  """
  for _ in range(_TRIES):
    changes = find(config, target.size, fitting(estimates, target.size, budget), recipe=recipe)
    if changes is None:
      return None
    estimated = sum(estimates(changes, target.size).values())
    needed = estimated if fits is None else fits(apply(config, changes), target)
    if needed is not None:
      return Advice(changes, target.name, needed)
    budget = 0.85 * min(budget, estimated)
  return None
