"""Parses and validates a run config: task, model, data, optimizer."""

from __future__ import annotations

from typing import NamedTuple

import optax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from gptneo_jax import data, sharding
from gptneo_jax.config import REMATS, ModelConfig
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import Method
from gptneo_jax.training import run_config, tasks
from gptneo_jax.training.epochs import settle_schedule
from gptneo_jax.training.optimizer import OptimizerConfig, Schedule, ScheduleConfig, make_optimizer
from gptneo_jax.training.skipping import SkipConfig
from gptneo_jax.training.tasks import Task

ON_FAILED_SAVE = ("continue", "stop")
AUTO = "auto"  # of model.remat: chosen for the devices, see training/fitting.py

_FROM_ZERO = (  # grad_accumulation=0: as few parts as fit
  "grad_accumulation eval_every checkpoint_every eval.documents eval.batch_size eval.sample_tokens"
  " eval.task_items keep_every_hours profile.first_step profile.steps epochs patience"
  " label_smoothing"
).split()


class Parsed(NamedTuple):
  task: Task
  model: ModelConfig
  method: Method
  data: data.DataConfig
  optimizer: optax.GradientTransformation
  learning_rate: Schedule
  skip: SkipConfig


def read(config: ConfigDict) -> Parsed:
  """What a config says; where it leaves model.remat open, that is `full` here. Raises UserError."""
  run_config.check_keys(config)
  model_fields = config.model.to_dict()
  if model_fields["remat"] not in (AUTO, *REMATS):
    raise UserError(
      f"model.remat is {model_fields['remat']!r}; it must be one of {', '.join((AUTO, *REMATS))}"
    )
  if model_fields["remat"] == AUTO:
    model_fields["remat"] = "full"
  with user_errors():
    method = _method(config)
    model_config = ModelConfig.from_dict(model_fields).replace(
      lora_dropout=method.lora.dropout if method.lora else 0.0, neftune_alpha=config.neftune_alpha
    )
    data_config = data.DataConfig(**config.data.to_dict())
    skip = SkipConfig(**config.skip.to_dict())
    optimizer, learning_rate = make_optimizer(
      OptimizerConfig(**config.optimizer.to_dict()), _schedule(config), model_config.num_layers
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
  if config.label_smoothing >= 1:
    raise UserError(f"label_smoothing is {config.label_smoothing}; it must be below 1")
  if config.on_failed_save not in ON_FAILED_SAVE:
    raise UserError(
      f"on_failed_save is {config.on_failed_save!r}; it must be one of {', '.join(ON_FAILED_SAVE)}"
    )
  if config.patience and not (config.eval_every or config.every_epoch):
    raise UserError(
      f"patience is {config.patience}, and nothing is evaluated before the end: eval_every is 0"
    )
  task = tasks.find(config.task)
  if model_config.head not in task.HEADS:
    raise UserError(
      f"model.head is {model_config.head!r}, which task {config.task!r} does not train; it trains"
      f" {', '.join(map(repr, task.HEADS))}"
    )
  for name in ("dtype", "param_dtype"):
    if getattr(model_config, name) == "float16":
      raise UserError(
        f"model.{name} is float16, which is for inference: its small gradients would be 0; train in"
        " bfloat16 or float32"
      )
  if config.seq_len > model_config.max_position_embeddings and not task.POSITIONS_RESTART:
    raise UserError(
      f"seq_len {config.seq_len} is more than model.max_position_embeddings"
      f" {model_config.max_position_embeddings}"
    )
  data_config = data_config.for_batch(config.batch_size)
  return Parsed(
    task=task,
    model=model_config,
    method=method,
    data=data_config,
    optimizer=optimizer,
    learning_rate=learning_rate,
    skip=skip,
  )


def _schedule(config: ConfigDict) -> ScheduleConfig:
  """The schedule in steps; a long one while these follow from epochs that are not counted yet."""
  if config.epochs > 0 and config.schedule.decay_steps == 0:
    config = run_config.apply(config, {"steps": 2**30})
  settled = settle_schedule(config).schedule.to_dict()
  with user_errors():
    return ScheduleConfig(**settled)


def _method(config: ConfigDict) -> Method:
  if config.lora.rank == 0:
    return Method(frozen=config.frozen)
  return Method(LoraConfig(**config.lora.to_dict()), config.frozen)


def warmup_warning(config: ConfigDict) -> str:
  """What to say of a run that ends before its learning rate has risen to the peak, else ''.

  Its steps are settled.
  """
  warmup = settle_schedule(config).schedule.warmup_steps
  if config.steps > warmup:
    return ""
  return (
    f"warning: steps {config.steps} do not exceed schedule.warmup_steps {warmup}: the learning rate"
    f" rises to {config.steps / warmup:.0%} of its peak at most"
  )


def check_batch(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
  """Raises UserError if a batch cannot be shared out among the devices of `mesh`."""
  parts = config.grad_accumulation or 1
  if config.batch_size % (sharding.batch_ways(mesh) * parts):
    raise UserError(
      f"batch_size {config.batch_size} is not divisible by mesh.data {mesh.shape['data']} x"
      f" mesh.fsdp {mesh.shape['fsdp']} x grad_accumulation {parts}"
    )
