"""From a config of the programs to checked, typed things: the model, the optimizer, the layout."""

from __future__ import annotations

from typing import NamedTuple

import optax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.config import REMATS, ModelConfig
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.state import TrainState, abstract_state
from gptneo_jax.training import memory_estimate, run_config
from gptneo_jax.training.optimizer import OptimizerConfig, Schedule, ScheduleConfig, make_optimizer

AUTO = "auto"  # of model.remat: chosen for the devices, see training/fitting.py

_FROM_ZERO = (  # grad_accumulation=0: as few parts as fit
  "grad_accumulation eval_every checkpoint_every eval.documents eval.batch_size eval.sample_tokens"
  " eval.task_items profile.first_step profile.steps"
).split()


class Sections(NamedTuple):
  model: ModelConfig
  data: data.DataConfig
  optimizer: optax.GradientTransformation
  learning_rate: Schedule


def read(config: ConfigDict) -> Sections:
  """The config's sections; where model.remat is left open, it is `full` here. Raises UserError."""
  run_config.check_keys(config)
  model_fields = config.model.to_dict()
  if model_fields["remat"] not in (AUTO, *REMATS):
    raise UserError(
      f"model.remat is {model_fields['remat']!r}; it must be one of {', '.join((AUTO, *REMATS))}"
    )
  if model_fields["remat"] == AUTO:
    model_fields["remat"] = "full"
  with user_errors():
    model_config = ModelConfig.from_dict(model_fields)
    data_config = data.DataConfig(**config.data.to_dict())
    optimizer, learning_rate = make_optimizer(
      OptimizerConfig(**config.optimizer.to_dict()), ScheduleConfig(**config.schedule.to_dict())
    )
  for name in ("steps", "batch_size", "seq_len", "log_every", "keep_latest"):
    if config[name] < 1:
      raise UserError(f"{name} is {config[name]}; it must be at least 1")
  if not 0 <= config.seed < 2**32:
    raise UserError(f"seed is {config.seed}; it must be from 0 to 2**32 - 1, the bits of a key")
  settings = run_config.flat(config)
  for name in _FROM_ZERO:
    if settings[name] < 0:
      raise UserError(f"{name} is {settings[name]}; it must be at least 0")
  if config.task != "lm":
    raise UserError(f"task is {config.task!r}; there is 'lm'")
  if model_config.head != "lm":
    raise UserError(
      f"model.head is {model_config.head!r}, which task 'lm' does not train; it is 'lm' here"
    )
  for name in ("dtype", "param_dtype"):
    if getattr(model_config, name) == "float16":
      raise UserError(
        f"model.{name} is float16, which is for inference: its small gradients would be 0; train in"
        " bfloat16 or float32"
      )
  if config.seq_len > model_config.max_position_embeddings:
    raise UserError(
      f"seq_len {config.seq_len} is more than model.max_position_embeddings"
      f" {model_config.max_position_embeddings}"
    )
  data_config = data_config.for_batch(config.batch_size)
  return Sections(model_config, data_config, optimizer, learning_rate)


def warmup_warning(config: ConfigDict) -> str:
  """What to say of a run that ends before its learning rate has risen to the peak, else ''."""
  warmup = config.schedule.warmup_steps
  if config.steps > warmup:
    return ""
  return (
    f"warning: steps {config.steps} do not exceed schedule.warmup_steps {warmup}: the learning rate"
    f" rises to {config.steps / warmup:.0%} of its peak at most"
  )


def layout(config: ConfigDict, sections: Sections, mesh: Mesh | AbstractMesh) -> TrainState:
  """The state of the run as shapes on `mesh`. Raises UserError for what does not divide."""
  with user_errors():
    state = abstract_state(Decoder(sections.model), sections.optimizer, mesh)
  check_batch(config, mesh)
  return state


def check_batch(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
  """Raises UserError if a batch cannot be shared out among the devices of `mesh`."""
  parts = config.grad_accumulation or 1
  if config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"] * parts):
    raise UserError(
      f"batch_size {config.batch_size} is not divisible by mesh.data {mesh.shape['data']} x"
      f" mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation {parts}"
    )


def step_bytes(
  config: ConfigDict, sections: Sections, mesh: Mesh | AbstractMesh, state: TrainState
) -> dict[str, int]:
  """What a step needs on each device, by part: see `preflight.step_bytes`."""
  return memory_estimate.step_bytes(
    sections.model,
    state,
    mesh,
    rows=config.batch_size // config.grad_accumulation,
    seq_len=config.seq_len,
    accumulates=config.grad_accumulation > 1,
  )
