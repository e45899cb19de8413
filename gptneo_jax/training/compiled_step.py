"""Compiles the training step of a run ahead of time, also for devices that are not here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import jax
from jax.sharding import Mesh, NamedSharding

from gptneo_jax import steps
from gptneo_jax.errors import out_of_memory
from gptneo_jax.sharding import BATCH_SPEC
from gptneo_jax.training import fitting
from gptneo_jax.training.memory_estimate import total
from gptneo_jax.training.setup import Run

T = TypeVar("T")


class TooLarge(Exception):
  """A program does not fit, as a compiler or a device says; needed: bytes of a device at least."""

  def __init__(self, text: str, needed: float | None = None):
    super().__init__(text)
    self.needed = needed


class Memory(NamedTuple):
  """Bytes of one device, as the compiler states them.

  aliased: the part of the outputs that reuses the memory of arguments. needed: what must be there.
  On a TPU that is the peak and the code: `temporary` counts buffers that take turns at one place
  more than once there, and programs whose sum is far above the memory are accepted (1.3B on v5e:2x4
  in 24 rows: sum 20.8 GiB, peak 14.0 of 15.75). Elsewhere it is the sum.
  """

  arguments: int
  outputs: int
  aliased: int
  temporary: int
  code: int
  peak: int
  needed: int


def compile_step(run: Run) -> jax.stages.Compiled:
  """The step that `train` runs, with its shardings and donation, compiled for the run's devices.

  Raises TooLarge: where the compiler finds no way to fit the step, as TPU's does, and where it asks
  a GPU for more memory than the run counts on.
  """
  assert isinstance(run.mesh, Mesh), "only devices that are known can be compiled for"
  step = steps.make_train_step(
    run.task.make_loss(run.config, run.module),
    run.optimizer,
    run.shardings,
    run.mesh,
    accumulation=run.config.grad_accumulation,
    guard=run.guard,
  )
  sharding = NamedSharding(run.mesh, BATCH_SPEC)
  batch = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    for name, array in run.task.batch_shapes(run).items()
  }
  # The mesh as a description: small constants that are made while tracing are made here, not there.
  with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
    lowered = cast(jax.stages.Wrapped, step).lower(run.state, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise too_large(error) or error from None
  platform = run.mesh.devices.flat[0].platform
  if platform == "gpu" and (needed := memory_of(compiled, platform).needed) > run.memory:
    raise TooLarge("the compiled step is larger than the device's memory", needed)
  return compiled


def fit(run: Run, compile_for: Callable[[Run], T]) -> tuple[Run, T]:
  """The run as it compiles, and what `compile_for` makes of it.

  compile_for: raises TooLarge for what does not fit. Then the values for what the config leaves
    open are chosen again, for an estimate that is smaller by what was missing, and by a tenth at
    least. Raises TooLarge where no smaller estimate is left.
  """
  num_devices, budget = run.mesh.size, run.memory
  while True:
    choice = fitting.choose(run.asked, num_devices, budget)
    chosen = run.with_choice(choice)
    try:
      return chosen, compile_for(chosen)
    except TooLarge as error:
      missing = run.memory / error.needed if error.needed else 1.0
      budget = total(fitting.estimate(chosen.config, num_devices)) * min(0.9, missing)
      if fitting.choose(run.asked, num_devices, budget) == choice:
        raise


def too_large(error: jax.errors.JaxRuntimeError) -> TooLarge | None:
  """The complaint as a TooLarge, if it is one of memory."""
  if not (line := out_of_memory(error)):
    return None
  text = str(error)
  number = r"([\d.]+)([KMGT]?)"
  found = re.search(rf"Used {number} of [\d.]+[KMGT]? hbm", text) or re.search(
    rf"\({number}\) exceeds available HBM", text
  )
  units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  needed = float(found[1]) * units[found[2]] if found else None
  return TooLarge(line, needed)


def memory_of(compiled: jax.stages.Compiled, platform: str) -> Memory:
  stats = compiled.memory_analysis()
  assert stats is not None
  arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
  aliased, temporary = stats.alias_size_in_bytes, stats.temp_size_in_bytes
  code, peak = stats.generated_code_size_in_bytes, stats.peak_memory_in_bytes
  held = peak if platform == "tpu" else arguments + outputs - aliased + temporary
  return Memory(
    arguments=arguments,
    outputs=outputs,
    aliased=aliased,
    temporary=temporary,
    code=code,
    peak=peak,
    needed=held + code,
  )
