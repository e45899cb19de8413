"""Steps of a run from passes over its data, and what a schedule counts from those."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from gptneo_jax.training.run_config import apply


def settle_steps(config: ConfigDict, steps_per_epoch: float) -> ConfigDict:
  """The config with `epochs` and `every_epoch` as steps, and with its schedule in steps too.

  `steps` follow from `epochs` above 0, rounded up. With `every_epoch`, `eval_every` and
  `checkpoint_every` are the steps of an epoch, rounded up: as many evaluations as epochs, the last
  at the end. A copy, locked; a config that leaves none of this open is returned itself.

  steps_per_epoch: batches that hold the training data once; need not be whole.
  """
  changes: dict[str, Any] = {}
  if config.epochs > 0:
    changes["steps"] = _whole(config.epochs * steps_per_epoch)
  if config.every_epoch:
    changes["eval_every"] = changes["checkpoint_every"] = _whole(steps_per_epoch)
  return settle_schedule(apply(config, changes) if changes else config)


def settle_schedule(config: ConfigDict) -> ConfigDict:
  """The config with `schedule.warmup_steps` from `warmup_ratio`, and `decay_steps` from `steps`.

  A copy, locked, or the config itself if its schedule is in steps.
  """
  changes = {}
  if config.schedule.warmup_ratio > 0:
    # At least one step is left to decay in: else a run of one step would have no learning rate.
    warmup = min(_whole(config.schedule.warmup_ratio * config.steps), config.steps - 1)
    changes["schedule.warmup_steps"] = warmup
  if config.schedule.decay_steps == 0:
    changes["schedule.decay_steps"] = config.steps
  return apply(config, changes) if changes else config


def _whole(steps: float) -> int:
  """Rounded up, at least 1; 1.1 epochs of 10 steps are 11, though the product is a little more."""
  return max(1, math.ceil(steps * (1 - 1e-12)))
