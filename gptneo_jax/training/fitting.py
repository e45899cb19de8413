"""Fits a run to the memory of its devices: what a config leaves open is chosen, then compiled.

A config leaves open into how many parts the batch is taken (`grad_accumulation=0`) and what the
backward pass computes again (`model.remat=auto`). `train` and `plan` choose here, so that they
agree. What is chosen depends on the config, the number of devices and the memory of one, never on
what is free at the moment: a run that goes on chooses again, and the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import user_errors
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.state import TrainState, abstract_state
from gptneo_jax.training import compiled_step, parse_config
from gptneo_jax.training.compiled_step import TooLarge
from gptneo_jax.training.memory_estimate import total
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer

T = TypeVar("T")
Changes = dict[str, Any]  # a setting, as --config.NAME=VALUE says it, to its value

# What a step takes longer for what is computed again: norms and gelu, or the whole forward pass.
_AGAIN = {"none": 0.0, "dots": 0.03, "full": 1 / 3}
# What each part of the batch costs whatever its size, in tokens on a device whose products take as
# long: the float32 sum of gradients is read and written, 12 bytes a parameter (v5e: 481 tokens at
# 197 TFLOP/s and 819 GB/s; H100: 590), and with fsdp weights are gathered while others are used.
_PART_TOKENS = 512


def apply(config: ConfigDict, changes: Changes) -> ConfigDict:
  """A copy of the config with settings changed."""
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(changes)
  return copy.lock()


def estimate(config: ConfigDict, num_devices: int) -> dict[str, int]:
  """Bytes of a step on each device by part, uncompiled; the least, where something is left open.

  Raises UserError if the config cannot run on so many devices.
  """
  needs = (_estimate(apply(config, one), num_devices) for one in _candidates(config, num_devices))
  return min(needs, key=lambda parts: sum(parts.values()))


def _estimate(config: ConfigDict, num_devices: int) -> dict[str, int]:
  parts = parse_config.read(config)
  with user_errors():
    mesh = sharding.abstract_mesh(**config.mesh.to_dict(), num_devices=num_devices)
    optimizer = OptimizerConfig(**config.optimizer.to_dict())
    state = _state(parts.model.replace(remat="none"), optimizer, mesh)  # remat changes no state
  parse_config.check_batch(config, mesh)
  return parse_config.step_bytes(config, parts, mesh, state)


@functools.lru_cache(maxsize=64)
def _state(model: ModelConfig, optimizer: OptimizerConfig, mesh: AbstractMesh) -> TrainState:
  """The state of a run as shapes, which takes a second to find out."""
  rule, _ = make_optimizer(optimizer, ScheduleConfig(name="constant", decay_steps=1))
  return abstract_state(Decoder(model), rule, mesh)


def choose(config: ConfigDict, num_devices: int, budget: float) -> Changes:
  """Values for what the config leaves open: of those that fit by estimate, the fastest.

  budget: bytes of a device. The time of a token counts what is computed again (`dots` 3% of a step,
  `full` a third) and what each part of the batch costs whatever its size, as much as the products
  of 512 tokens on a device. So recomputation is the least that fits, unless parts would then be
  small: `dots` in parts of 8192 tokens goes before `none` in parts of 2048. Where nothing fits by
  estimate, the values that need least.
  """
  candidates = _candidates(config, num_devices)
  if len(candidates) == 1:
    return candidates[0]
  needs = [total(_estimate(apply(config, one), num_devices)) for one in candidates]
  fitting = [one for one, need in zip(candidates, needs) if need <= budget]
  if not fitting:
    return candidates[needs.index(min(needs))]
  tokens = config.batch_size // _ways(config, num_devices) * config.seq_len  # of a device

  def time(one: Changes) -> float:
    """Of a token, in units of what its products take."""
    remat = one.get("model.remat", config.model.remat)
    parts = one.get("grad_accumulation", config.grad_accumulation)
    return work(remat) + _PART_TOKENS * parts / tokens

  return min(fitting, key=time)


def work(remat: str) -> float:
  """What a step computes, in units of what it computes where nothing is computed again."""
  return 1.0 + _AGAIN[remat]


def fit(
  config: ConfigDict,
  num_devices: int,
  memory: float,
  compile_for: Callable[[ConfigDict], T],
) -> tuple[ConfigDict, T]:
  """The config with nothing left open, and what `compile_for` makes of it.

  memory: bytes of a device. compile_for: raises TooLarge for what does not fit. Then what needs
  less by estimate is taken, by as much as was missing and a tenth at the least; where there is no
  such thing, TooLarge is raised.
  """
  budget = memory
  while True:
    choice = choose(config, num_devices, budget)
    chosen = apply(config, choice)
    try:
      return chosen, compile_for(chosen)
    except TooLarge as error:
      missing = memory / error.needed if error.needed else 1.0
      budget = total(estimate(chosen, num_devices)) * min(0.9, missing)
      if choose(config, num_devices, budget) == choice:
        raise


def compile_step(
  config: ConfigDict, mesh: Mesh, state: TrainState, memory: float
) -> jax.stages.Compiled:
  """The step of a run, with nothing left open, compiled for the devices of `mesh`.

  state: abstract, with shardings. memory: bytes of a device, to which a GPU's compiler does not
  hold itself. Raises TooLarge.
  """
  parts = parse_config.read(config)
  return compiled_step.compile_step(
    parts.model,
    parts.optimizer,
    state,
    mesh,
    batch_size=config.batch_size,
    seq_len=config.seq_len,
    segments=config.data.segment_ids,
    z_loss=config.z_loss,
    accumulation=config.grad_accumulation,
    memory=memory,
  )


# --- what is open ---------------------------------------------------------------------------------


def _candidates(config: ConfigDict, num_devices: int) -> list[Changes]:
  """All values for what is open; of a config that leaves nothing open, no change alone."""
  remats: list[Changes] = [{}]
  if config.model.remat == parse_config.AUTO:
    remats = [{"model.remat": remat} for remat in _AGAIN]
  parts: list[Changes] = [{}]
  if config.grad_accumulation == 0:
    rows = max(config.batch_size // _ways(config, num_devices), 1)
    parts = [{"grad_accumulation": n} for n in range(1, rows + 1) if rows % n == 0]
  return [remat | part for remat in remats for part in parts]


def _ways(config: ConfigDict, num_devices: int) -> int:
  """Devices that a batch is split over. Raises UserError for a mesh that is not of so many."""
  with user_errors():
    data, fsdp, _ = sharding.mesh_sizes(**config.mesh.to_dict(), num_devices=num_devices)
  return data * fsdp
