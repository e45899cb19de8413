"""Which checkpoints a folder holds, and which of them a path and a step refer to.

FOLDER refers to its newest checkpoint, FOLDER and a step to the one with that number, or to the one
with the lowest eval/loss for the step `best`. FOLDER/STEP is the path of a single checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from gptneo_jax.errors import UserError

BEST_METRIC = "eval/loss"  # lower is better
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
  """The step with the lowest eval/loss. Raises CheckpointError if none was evaluated."""
  losses = {step: loss_of(absolute(folder) / str(step)) for step in saved_steps(folder)}
  best = min(losses, key=lambda step: (losses[step], -step), default=None)
  if best is None or not math.isfinite(losses[best]):
    raise CheckpointError(
      f"none of the checkpoints in {folder} has an {BEST_METRIC}; there are {list(losses)}"
    )
  return best


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
    name: a folder (`~` is expanded), a numbered checkpoint in one, or anything else, such as a hub
      id, which is returned unchanged with step None.
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


def loss_of(checkpoint: epath.Path) -> float:
  """A checkpoint's eval/loss; infinity if it has none or it is not finite."""
  loss = metrics_of(checkpoint).get(BEST_METRIC, math.inf)
  return loss if math.isfinite(loss) else math.inf


def absolute(folder: Any) -> epath.Path:
  path = epath.Path(folder)
  return path if "://" in str(folder) else epath.Path(os.path.abspath(path))
