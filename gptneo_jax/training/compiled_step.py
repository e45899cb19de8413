"""Compiles the training step of a run ahead of time, also for devices that are not here."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from gptneo_jax import steps
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import out_of_memory
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.sharding import BATCH_SPEC
from gptneo_jax.state import TrainState


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


def compile_step(
  model_config: ModelConfig,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  mesh: Mesh,
  *,
  batch_size: int,
  seq_len: int,
  segments: bool,
  z_loss: float,
  accumulation: int,
  memory: float = math.inf,
) -> jax.stages.Compiled:
  """The step that `train` runs, with its shardings and donation, compiled ahead of time.

  state: abstract, with shardings. memory: bytes of a device. Raises TooLarge: where the compiler
  finds no way to fit the step, as TPU's does, and where it asks a GPU for more than there is.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = steps.make_train_step(
    Decoder(model_config), optimizer, shardings, mesh, z_loss=z_loss, accumulation=accumulation
  )
  kinds = {"inputs": jnp.int32, "targets": jnp.int32}
  if segments:
    kinds |= {"segment_ids": jnp.int32, "weights": jnp.float32}
  sharding = NamedSharding(mesh, BATCH_SPEC)
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, seq_len), dtype, sharding=sharding)
    for name, dtype in kinds.items()
  }
  # The mesh as a description: small constants that are made while tracing are made here, not there.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = cast(jax.stages.Wrapped, step).lower(state, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise too_large(error) or error from None
  platform = mesh.devices.flat[0].platform
  if platform == "gpu" and (needed := memory_of(compiled, platform).needed) > memory:
    raise TooLarge("the compiled step is larger than the device's memory", needed)
  return compiled


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
  parts = (
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )
  arguments, outputs, aliased, temporary, code = parts
  peak = stats.peak_memory_in_bytes
  held = peak if platform == "tpu" else arguments + outputs - aliased + temporary
  return Memory(*parts, peak=peak, needed=held + code)
