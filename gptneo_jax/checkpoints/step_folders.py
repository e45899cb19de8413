"""Which checkpoints a folder holds, and which of them a path and a step refer to.

FOLDER refers to its newest checkpoint, FOLDER and a step to the one with that number, or to the one
of the best metric for the step `best`. FOLDER/STEP is the path of a single checkpoint, and
FOLDER/best of the best one.

Which metric that is, the run's settings say (`best_metric`; eval/loss where there are none). Lower
is better if one of the words of its name is in LOWER_IS_BETTER, else higher.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from gptneo_jax.errors import UserError

RUN_CONFIG = "run_config.json"  # in a run's folder: its settings, among others
BEST_METRIC = "eval/loss"  # unless the settings name another
LOWER_IS_BETTER = frozenset(
  "loss perplexity ppl bits bpb nll error err mse rmse mae wer cer ece brier".split()
)
BEST = "best"


class CheckpointError(UserError):
  """A checkpoint cannot be written or read, or is of another model; the message is one line."""


def saved_steps(folder: epath.PathLike) -> list[int]:
  """The steps of the committed checkpoints directly below `folder`, ascending."""
  path = absolute(folder)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.is_dir() else []


def latest_step(folder: epath.PathLike) -> int | None:
  """The newest committed step below `folder`, or None."""
  return max(saved_steps(folder), default=None)


def best_step(folder: epath.PathLike) -> int:
  """The step of the best metric, the first if it is that of several.

  Raises CheckpointError if none was evaluated.
  """
  metric = best_metric(folder)
  costs = {
    step: cost(metrics_of(absolute(folder) / str(step)), metric) for step in saved_steps(folder)
  }
  best = min(costs, key=lambda step: (costs[step], step), default=None)
  if best is None or not math.isfinite(costs[best]):
    raise CheckpointError(
      f"none of the checkpoints in {folder} has an {metric}; there are {list(costs)}"
    )
  return best


def best_metric(folder: epath.PathLike) -> str:
  """The metric that chooses the best checkpoint of a folder."""
  try:
    settings = json.loads((absolute(folder) / RUN_CONFIG).read_text())
    return str(settings["config"]["best_metric"])
  except (OSError, ValueError, TypeError, KeyError):
    return BEST_METRIC


def lower_is_better(metric: str) -> bool:
  """Whether a metric of this name is a loss or an error: 'eval/loss', 'eval/bits_per_byte/Law'."""
  return not LOWER_IS_BETTER.isdisjoint(re.split("[^a-z]+", metric.lower()))


def cost(metrics: Mapping[str, float], metric: str) -> float:
  """A metric such that lower is better; infinity if it is not there or not finite."""
  value = metrics.get(metric)
  if value is None or not math.isfinite(value):
    return math.inf
  return value if lower_is_better(metric) else -value


def existing_step(folder: epath.PathLike, step: int | None) -> int:
  """`step`, by default the newest. Raises CheckpointError if there is no such checkpoint."""
  steps = saved_steps(folder)
  if not steps:
    raise CheckpointError(f"no checkpoint in {folder}")
  if step is not None and step not in steps:
    raise CheckpointError(f"no checkpoint {step} in {folder}; there are {steps}")
  return steps[-1] if step is None else step


def find_checkpoint(name: epath.PathLike, step: int | str | None = None) -> tuple[str, int | None]:
  """The folder and the step that `name` and `step` refer to; the step is None for the newest.

  Args:
    name: a folder (`~` is expanded), a checkpoint in one by its number or as FOLDER/best, or
      anything else, such as a hub id, which is returned unchanged with step None.
    step: a number, also as text, or 'best'.

  Raises:
    CheckpointError: no such step, or it contradicts the path.
  """
  name = os.path.expanduser(str(name))
  path = epath.Path(name.rstrip("/"))
  if path.name.isdecimal() and (path / "params").is_dir() and not (path / "config.json").exists():
    if step is not None and str(step) != path.name:
      raise CheckpointError(f"step {step} of {name}: that is step {path.name} of {path.parent}")
    return str(path.parent), int(path.name)
  if path.name == BEST and step is None and not path.exists() and saved_steps(path.parent):
    return str(path.parent), best_step(path.parent)
  if step is None:
    return name, None
  if step == BEST:
    return name, best_step(name)
  if not str(step).isdecimal():
    raise CheckpointError(f"step {step!r} is neither a number nor {BEST!r}")
  return name, existing_step(name, int(step))


def metrics_of(checkpoint: epath.Path) -> dict[str, float]:
  """A checkpoint's metrics; {} if it was saved without any, or if their file is damaged."""
  try:
    return json.loads((checkpoint / "metrics" / "metrics").read_text())
  except (OSError, ValueError):
    return {}


def absolute(folder: Any) -> epath.Path:
  path = epath.Path(folder)
  return path if "://" in str(folder) else epath.Path(os.path.abspath(path))
