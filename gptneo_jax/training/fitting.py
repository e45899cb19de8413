"""Fits a run to the memory of its devices: chooses what a config leaves open, by estimate.

A config leaves open into how many parts the batch is taken (`grad_accumulation=0`) and what the
backward pass computes again (`model.remat=auto`). `train` and `plan` choose here, so that they
agree. What is chosen depends on the config, the number of devices and the memory of one, never on
what is free at the moment: a run that resumes chooses again, and the same. What then does not
compile is followed by less (`compiled_step.fit`).
"""

from __future__ import annotations

import functools
from typing import Any

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import user_errors
from gptneo_jax.model import heads
from gptneo_jax.model.methods import Method
from gptneo_jax.state import TrainState, abstract_state
from gptneo_jax.training import parse_config
from gptneo_jax.training.memory_estimate import step_bytes, total
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from gptneo_jax.training.run_config import apply

Changes = dict[str, Any]  # a setting, as --config.NAME=VALUE says it, to its value

# Recomputation, as a share of a step: norms and gelu, or all of the forward pass.
_AGAIN = {"none": 0.0, "dots": 0.03, "full": 1 / 3}
# Fixed cost of each part of the batch, in tokens whose matrix products take as long: the float32
# sum of gradients is read and written, 12 bytes a parameter (v5e: 481 tokens at 197 TFLOP/s and
# 819 GB/s; H100: 590), and with fsdp weights are gathered while others are used.
_PART_TOKENS = 512


def estimate(config: ConfigDict, num_devices: int) -> dict[str, int]:
  """Bytes of a step on each device by part, uncompiled; the least, where something is left open.

  Raises UserError if the config cannot run on that number of devices.
  """
  needs = (_estimate(apply(config, one), num_devices) for one in _candidates(config, num_devices))
  return min(needs, key=lambda parts: sum(parts.values()))


def _estimate(config: ConfigDict, num_devices: int) -> dict[str, int]:
  parsed = parse_config.read(config)
  with user_errors():
    mesh = sharding.abstract_mesh(**config.mesh.to_dict(), num_devices=num_devices)
    optimizer = OptimizerConfig(**config.optimizer.to_dict())
    # Remat changes no state.
    state = _state(parsed.model.replace(remat="none"), parsed.method, optimizer, mesh)
  parse_config.check_batch(config, mesh)
  return step_bytes(
    parsed.model,
    state,
    mesh,
    rows=config.batch_size // config.grad_accumulation,
    seq_len=config.seq_len,
    accumulates=config.grad_accumulation > 1,
  )


@functools.lru_cache(maxsize=64)
def _state(
  model: ModelConfig, method: Method, optimizer: OptimizerConfig, mesh: AbstractMesh
) -> TrainState:
  """The state of a run as shapes, which takes a second to find out."""
  rule, _ = make_optimizer(
    optimizer, ScheduleConfig(name="constant", decay_steps=1), model.num_layers
  )
  return abstract_state(heads.build(model), rule, mesh, method)


def choose(config: ConfigDict, num_devices: int, budget: float) -> Changes:
  """Values for what the config leaves open: of those that fit by estimate, the fastest.

  budget: bytes of a device. The time of a token counts recomputation (`dots` 3% of a step, `full`
  a third) and the fixed cost of each part of the batch, that of 512 tokens on a device. So
  recomputation is the least that fits, unless parts would then be small: `dots` in parts of 8192
  tokens is preferred to `none` in parts of 2048. Where nothing fits by estimate, the values that
  need least.
  """
  candidates = _candidates(config, num_devices)
  if len(candidates) == 1:
    return candidates[0]
  needs = [total(_estimate(apply(config, one), num_devices)) for one in candidates]
  fitting = [one for one, need in zip(candidates, needs) if need <= budget]
  if not fitting:
    return candidates[needs.index(min(needs))]
  tokens = config.batch_size // ways_of_batch(config, num_devices) * config.seq_len  # of a device

  def time(one: Changes) -> float:
    """Of a token, in units of what its products take."""
    remat = one.get("model.remat", config.model.remat)
    parts = one.get("grad_accumulation", config.grad_accumulation)
    return work(remat) + _PART_TOKENS * parts / tokens

  return min(fitting, key=time)


def work(remat: str) -> float:
  """What a step computes, in units of a step without recomputation."""
  return 1.0 + _AGAIN[remat]


# --- what is open ---------------------------------------------------------------------------------


def _candidates(config: ConfigDict, num_devices: int) -> list[Changes]:
  """All values for what is open; [{}] for a config that leaves nothing open."""
  remats: list[Changes] = [{}]
  if config.model.remat == parse_config.AUTO:
    remats = [{"model.remat": remat} for remat in _AGAIN]
  parts: list[Changes] = [{}]
  if config.grad_accumulation == 0:
    rows = max(config.batch_size // ways_of_batch(config, num_devices), 1)
    parts = [{"grad_accumulation": n} for n in range(1, rows + 1) if rows % n == 0]
  return [remat | part for remat in remats for part in parts]


def ways_of_batch(config: ConfigDict, num_devices: int) -> int:
  """Devices that a batch is split over. Raises UserError for a mesh of another number."""
  with user_errors():
    mesh = sharding.abstract_mesh(**config.mesh.to_dict(), num_devices=num_devices)
  return sharding.batch_ways(mesh)
