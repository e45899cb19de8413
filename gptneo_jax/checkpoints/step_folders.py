"""Which checkpoints a folder holds, and which of them is meant. Knows orbax, as checkpoint.py does.

A checkpoint is meant by its folder (the newest), by folder and step (a number, or `best`: the one
of the lowest eval/loss), or by its own path, FOLDER/STEP.
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
  """A checkpoint could not be written, read, or does not fit; the message is one line."""


def saved_steps(folder: epath.PathLike) -> list[int]:
  """The steps of the committed checkpoints directly below `folder`, ascending."""
  path = absolute(folder)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.is_dir() else []


def latest_step(folder: epath.PathLike) -> int | None:
  """The newest committed step below `folder`, None if there is none."""
  return max(saved_steps(folder), default=None)


def best_step(folder: epath.PathLike) -> int:
  """The step of the lowest eval/loss. Raises CheckpointError if none was evaluated."""
  losses = {step: loss_of(absolute(folder) / str(step)) for step in saved_steps(folder)}
  best = min(losses, key=lambda step: (losses[step], -step), default=None)
  if best is None or not math.isfinite(losses[best]):
    raise CheckpointError(
      f"none of the checkpoints in {folder} has an {BEST_METRIC}; there are {list(losses)}"
    )
  return best


def existing_step(folder: epath.PathLike, step: int | None) -> int:
  """`step`, or the newest. Raises CheckpointError if it is not there."""
  steps = saved_steps(folder)
  if not steps:
    raise CheckpointError(f"no checkpoint in {folder}")
  if step is not None and step not in steps:
    raise CheckpointError(f"no checkpoint {step} in {folder}; there are {steps}")
  return steps[-1] if step is None else step


def find(name: epath.PathLike, step: int | str | None = None) -> tuple[str, int | None]:
  """The folder and the step that `name` and `step` mean; step None: the newest, or not ours.

  Args:
    name: a folder (`~` is the home), a numbered checkpoint in one, or anything else, such as a hub
      id, which is given back as it is.
    step: a number, also as text, or 'best'.

  Raises:
    CheckpointError: no such step, or another one than the path says.
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
  """What was measured of a checkpoint; nothing if it was saved without, or if that is damaged."""
  try:
    return json.loads((checkpoint / "metrics" / "metrics").read_text())
  except (OSError, ValueError):
    return {}


def loss_of(checkpoint: epath.Path) -> float:
  """Its eval/loss, infinity if there is none or it is not finite."""
  loss = metrics_of(checkpoint).get(BEST_METRIC, math.inf)
  return loss if math.isfinite(loss) else math.inf


def absolute(folder: Any) -> epath.Path:
  path = epath.Path(folder)
  return path if "://" in str(folder) else epath.Path(os.path.abspath(path))
