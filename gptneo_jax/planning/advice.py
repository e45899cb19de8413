"""Which settings make a run fit in memory that does not, least change first."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptneo_jax.errors import UserError
from gptneo_jax.planning.topology import Topology
from gptneo_jax.training import parse_config
from gptneo_jax.training.compiled_step import TooLarge, too_large
from gptneo_jax.training.fitting import Changes, apply, estimate, ways_of_batch
from gptneo_jax.training.memory_estimate import needs_text, size_text, total

_TRIES = 3  # compilations spent on settings that should fit


class Advice(NamedTuple):
  """Settings that fit on a topology, and the bytes that they need of each device there."""

  changes: Changes
  topology: str
  needed: float


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
  if config.model.remat not in ("full", parse_config.AUTO):
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
  """The batch as it is, in more and more parts, and if asked smaller and smaller in one part.

  A config that leaves the parts open leaves them so.
  """
  try:
    ways = ways_of_batch(config, num_devices)
  except UserError:
    return
  rows = config.batch_size // ways  # of a device
  yield {}
  given = config.grad_accumulation
  for parts in range(given + 1, rows + 1) if given else ():
    if rows % parts == 0:
      yield {"grad_accumulation": parts}
  if smaller:
    least = math.lcm(ways, config.data.num_streams or 1)
    batch = 2 ** math.floor(math.log2(max(config.batch_size / least, 1))) * least
    while batch >= least:
      if batch < config.batch_size or given > 1:
        yield {"batch_size": batch} | ({"grad_accumulation": 1} if given else {})
      batch //= 2


def fitting(config: ConfigDict, num_devices: int, available: float) -> Callable[[Changes], bool]:
  """Whether a config with changes needs at most `available` bytes by estimate, and can run."""

  def fits(changes: Changes) -> bool:
    try:
      return total(estimate(apply(config, changes), num_devices)) <= available
    except UserError:
      return False

  return fits


def settings(
  config: ConfigDict,
  target: Topology,
  budget: float,
  *,
  recipe: bool,
  fits: Callable[[ConfigDict, Topology], float | None] | None,
) -> Advice | None:
  """The first changes that `find` has for a budget of estimated bytes, proved if `fits` can.

  fits: compiles a config; returns the bytes it needs, None if they are not there. What fails is
  followed by settings of a smaller estimate.
  """
  for _ in range(_TRIES):
    changes = find(config, target.size, fitting(config, target.size, budget), recipe=recipe)
    if changes is None:
      return None
    changed = apply(config, changes)
    estimated = total(estimate(changed, target.size))
    needed = estimated if fits is None else fits(changed, target)
    if needed is not None:
      return Advice(changes, target.name, needed)
    budget = 0.85 * min(budget, estimated)
  return None


# --- for a run, on the devices that are here ------------------------------------------------------


def would_fit(config: ConfigDict, num_devices: int, budget: float) -> str:
  """A sentence with settings that would fit a budget by estimate; '' if none is known here."""
  fits = fitting(config, num_devices, budget)
  for recipe in (True, False):
    changes = find(config, num_devices, fits, recipe=recipe)
    if changes:
      return f"By estimate this fits: {flags_text(changes)}"
  return ""


def flags_text(changes: Changes) -> str:
  return " ".join(f"--config.{name}={value}" for name, value in changes.items())


@contextlib.contextmanager
def when_out_of_memory(config: ConfigDict, num_devices: int, memory: float) -> Iterator[None]:
  """Memory that runs out, while compiling or running, becomes a UserError with the figures."""
  try:
    yield
  except (TooLarge, jax.errors.JaxRuntimeError) as error:
    problem = error if isinstance(error, TooLarge) else too_large(error)
    if problem is None:
      raise
    said = (
      f"the compiler needs at least {size_text(problem.needed)}" if problem.needed else str(problem)
    )
    needs = estimate(config, num_devices)
    figures = needs_text(needs, memory, num_devices)
    settings_ = would_fit(config, num_devices, 0.85 * min(memory, total(needs)))
    raise UserError(f"out of memory: {said}. By estimate {figures}. {settings_}".rstrip()) from None
