"""Checkpoints: numbered folders, each whole or not there at all.

checkpoint_steps.py says which there are, checkpoint_reading.py reads them; these and
checkpoints/lazy.py know orbax.

`FOLDER/STEP/` holds `params`, `optimizer` (any tree of arrays) and `data` (a JSON dictionary),
and is renamed into place only when all of it is written: a process killed half-way leaves a
temporary folder that the next `Checkpointer` removes.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gptneo_jax.checkpoints.reading import (
  DamagedError,
  read,
  reason_of,
  require_same_model,
  restore_args,
)
from gptneo_jax.checkpoints.step_folders import (
  BEST_METRIC,
  CheckpointError,
  absolute,
  latest_step,
  metrics_of,
  saved_steps,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held: trees of jax.Array, the state of the data stream, and its metrics."""

  step: int
  params: Any
  optimizer: Any
  data_state: dict[str, Any]
  metrics: dict[str, float]


class _QuietOrbax(logging.Filter):
  """Drops what orbax itself logs through absl: a dozen lines a save, and every error twice.

  Errors are not lost: orbax raises each of them too, and here they become CheckpointError.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


logging.getLogger("absl").addFilter(_QuietOrbax())


class Checkpointer:
  """Writes and reads the checkpoints of one run.

  All processes of a run create and call it alike. The newest `keep_latest` checkpoints stay, and
  of those with the metric `eval/loss` the best `keep_best`; the others are removed once a
  newer one is whole.
  """

  def __init__(
    self, folder: str, *, keep_latest: int = 3, keep_best: int = 1, asynchronous: bool = True
  ):
    if keep_latest < 1 or keep_best < 0:
      raise ValueError(f"keep_latest is {keep_latest}, keep_best {keep_best}; at least 1 and 0")
    self._folder = absolute(folder)
    self._saving: int | None = None
    self._losses: dict[int, float] = {}  # eval/loss by step, where this process measured it
    self._keep, self._asynchronous = (keep_latest, keep_best), asynchronous
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[BEST_METRIC],  # without it orbax stores no metrics
        best_mode="min",
        preservation_policy=_LatestAndBest(self._folder, self._losses, *self._keep),
        # Nor read the metrics of all steps now: orbax gives up on one damaged metrics file.
        lightweight_initialize=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=self._asynchronous,
      ),
    )

  def save(
    self,
    step: int,
    *,
    params: Any,
    optimizer: Any,
    data_state: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Starts writing a checkpoint, and returns when the arrays may be donated.

    First waits for the save before this one, if that is still being written. On accelerators the
    arrays have been copied to the host on return; on CPU orbax holds views, for as long as which
    XLA leaves the memory alone and a donating step takes fresh memory instead.

    Args:
      step: names the folder.
      params, optimizer: trees of arrays (random keys as their data: `jax.random.key_data`).
      data_state: a JSON dictionary.
      metrics: ranks the checkpoint if it has a finite `eval/loss`.

    Returns:
      False if this step stands already, which leaves it as it is.

    Raises:
      CheckpointError: this save, or the one before it, failed.
    """
    self.wait()
    if step in self._manager.all_steps():
      return False
    self._saving = step
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          optimizer=ocp.args.StandardSave(optimizer),
          data=ocp.args.JsonSave(dict(data_state)),
        ),
        metrics={key: float(value) for key, value in metrics.items()} if metrics else None,
        force=True,
      )
    except Exception as error:
      raise self._failed(error) from error
    return True

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Puts with a checkpoint what was measured after it was saved; `eval/loss` ranks it.

    Returns when both are on disk. Raises CheckpointError like `wait`.
    """
    self.wait()
    self._losses[step] = float(metrics.get(BEST_METRIC, math.inf))
    path = self._folder / str(step)
    if jax.process_index() == 0 and path.exists():
      file = path / "metrics" / "metrics"
      file.parent.mkdir(exist_ok=True)
      written = file.with_name("metrics.part")  # renamed: a process killed here leaves the old one
      written.write_text(json.dumps(metrics_of(path) | {k: float(v) for k, v in metrics.items()}))
      written.replace(file)

  def wait(self) -> None:
    """Returns when the checkpoint being written is whole. Raises CheckpointError if it failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error
    self._saving = None

  def close(self) -> None:
    """Waits, then ends the background threads. Raises CheckpointError like `wait`."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def restore(
    self, abstract_params: Any, abstract_optimizer: Any, *, vocab_size: int | None = None
  ) -> Restored | None:
    """Returns the newest whole checkpoint, None if the folder has none.

    A damaged one (files missing or cut off) is renamed to `STEP.damaged`, with a warning, and
    the next older one is tried.

    Args:
      abstract_params, abstract_optimizer: trees of ShapeDtypeStruct with the shardings wanted;
        the mesh need not be the one that wrote.
      vocab_size: as in `restore_params`; the optimizer's arrays go with the tables.

    Raises:
      CheckpointError: the checkpoint holds another model (names the first tensor that differs;
        nothing is moved), none of several is whole, or the machine failed to read.
    """
    self.wait()
    steps = saved_steps(self._folder)
    for step in reversed(steps):
      path = self._folder / str(step)
      restored, reason = None, "unreadable in another process"
      try:
        restored = self._restore_step(path, step, abstract_params, abstract_optimizer, vocab_size)
      except DamagedError as error:
        reason = str(error)
      if _true_everywhere(restored is not None):
        return restored
      if jax.process_index() == 0:
        aside = _free_name(path)
        path.rename(aside)
        _log.warning("checkpoint %d is damaged (%s); it is now %s", step, reason, aside)
      _true_everywhere(True)  # no process lists the folder before it is moved
      self._manager.close()
      self._manager = self._open()  # to list the steps anew
    if steps:
      raise CheckpointError(f"none of the {len(steps)} checkpoints in {self._folder} is whole")
    return None

  def _restore_step(
    self, path: epath.Path, step: int, abstract_params: Any, abstract_optimizer: Any, vocab_size
  ) -> Restored:
    require_same_model(path, "params", abstract_params, vocab_size, same_dtype=True)
    require_same_model(path, "optimizer", abstract_optimizer, vocab_size, same_dtype=True)
    items = read(
      path,
      params=restore_args(abstract_params),
      optimizer=restore_args(abstract_optimizer),
      data=ocp.args.JsonRestore(),
    )
    return Restored(step, items["params"], items["optimizer"], items["data"], metrics_of(path))

  def _failed(self, error: Exception) -> CheckpointError:
    """Clears up after a failed save, so that the next may succeed, and words the error."""
    step, self._saving = self._saving, None
    if jax.process_index() == 0:
      # What was written of it would keep a full disk full.
      for leftover in self._folder.glob(f"{step}.orbax-checkpoint-tmp*"):
        with contextlib.suppress(OSError):  # another item may still be being written
          leftover.rmtree()
    with contextlib.suppress(ValueError):  # from a damaged metrics file
      self._manager.reload()  # orbax has dropped from its list what this save was to replace
    last = latest_step(self._folder)
    stands = "no checkpoint stands" if last is None else f"the last good one is {last}"
    return CheckpointError(
      f"checkpoint {step} in {self._folder} was not saved: {reason_of(error)}; {stands}"
    )


class _LatestAndBest:
  """Keeps the newest steps and the best by BEST_METRIC. orbax's BestN would rank NaN too."""

  def __init__(self, folder: epath.Path, losses: Mapping[int, float], latest: int, best: int):
    self._folder, self._losses, self._latest, self._best = folder, losses, latest, best

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    ranked = sorted((self._loss(info), -info.step) for info in checkpoints)
    keep = {-step for loss, step in ranked[: self._best] if math.isfinite(loss)}
    keep |= set(steps[-self._latest :])
    return [step in keep for step in steps]

  def _loss(self, info) -> float:
    """Returns the loss that stands with it, infinity if there is none or it is not finite."""
    loss = self._losses.get(info.step)
    if loss is None:
      metrics = info.metrics
      if metrics is None:  # saved without, or by an earlier process
        metrics = metrics_of(self._folder / str(info.step))
      loss = metrics.get(BEST_METRIC, math.inf)
    return loss if math.isfinite(loss) else math.inf


def _free_name(path: epath.Path) -> epath.Path:
  aside, count = path.with_name(f"{path.name}.damaged"), 1
  while aside.exists():
    aside, count = path.with_name(f"{path.name}.damaged.{count}"), count + 1
  return aside


def _true_everywhere(flag: bool) -> bool:
  """Returns whether `flag` holds in every process: each may have read other files."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))
