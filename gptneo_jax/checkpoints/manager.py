"""Saves and restores a run's checkpoints: numbered folders, each complete or absent.

`FOLDER/STEP/` holds `params`, `optimizer` (any tree of arrays), `data` (a JSON dictionary) and the
checksums of their files (`manifest`). It is renamed into place when all of it is written: a process
killed before that leaves a temporary folder that the next `Checkpointer` removes.
"""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gptneo_jax.checkpoints import manifest
from gptneo_jax.checkpoints.quiet import free_abandoned, quiet_abandoned, quiet_orbax
from gptneo_jax.checkpoints.reading import (
  DamagedError,
  check_files,
  read,
  reason_of,
  require_same_model,
  restore_args,
)
from gptneo_jax.checkpoints.step_folders import (
  BEST_METRIC,
  CheckpointError,
  absolute,
  cost,
  latest_step,
  metrics_of,
  saved_steps,
)

_log = logging.getLogger(__name__)

_SAVE_SECONDS = 2 * 3600  # that a save may take, with the reading of its files for their checksums


@dataclasses.dataclass(frozen=True)
class Restored:
  """The content of a checkpoint: trees of jax.Array, the state of the data, and its metrics."""

  step: int
  params: Any
  optimizer: Any
  data_state: dict[str, Any]
  metrics: dict[str, float]


class Checkpointer:
  """Writes and reads the checkpoints of one run.

  All processes of a run create and call it alike. It keeps the newest `keep_latest` checkpoints,
  the `keep_best` with the best `best_metric` (`step_folders`), and for good the first one of each
  `keep_every_hours` (0: none) but the run's first; others are removed once a newer one is complete.
  While it is open, orbax logs nothing: it saves in background threads.
  """

  def __init__(
    self,
    folder: str,
    *,
    keep_latest: int = 3,
    keep_best: int = 1,
    keep_every_hours: float = 0.0,
    best_metric: str = BEST_METRIC,
  ):
    if keep_latest < 1 or keep_best < 0:
      raise ValueError(f"keep_latest is {keep_latest}, keep_best {keep_best}; at least 1 and 0")
    self._folder = absolute(folder)
    self._saving: int | None = None
    self._best_metric = best_metric
    self._costs: dict[int, float] = {}  # by step, where this process measured the metric
    self._keep, self._keep_seconds = (keep_latest, keep_best), 3600 * keep_every_hours
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(quiet_orbax())
    self._quiet.enter_context(quiet_abandoned())
    self._opened: ocp.CheckpointManager | None = None
    try:
      self._opened = self._open()
    except BaseException:
      self._quiet.close()
      raise

  @property
  def _manager(self) -> ocp.CheckpointManager:
    """orbax's, opened anew after a failure: it remembers errors of other items of the same save."""
    if self._opened is None:
      self._opened = self._open()
    return self._opened

  def _close_manager(self) -> None:
    if self._opened is not None:
      self._opened.close()
    self._opened = None

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[self._best_metric],  # otherwise orbax stores no metrics
        preservation_policy=_LatestAndBest(
          self._folder, self._best_metric, self._costs, *self._keep
        ),
        # Else orbax reads the metrics of all steps, and fails if one file of them is damaged.
        lightweight_initialize=True,
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(
          post_finalization_callback=self._list_files,
          # Made in the background, a folder that cannot be made holds up the end of the program for
          # five minutes: other threads wait for it.
          create_directories_asynchronously=False,
          timeout_secs=_SAVE_SECONDS,
        ),
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

    Waits for the previous save first, if that is still being written. On accelerators the arrays
    have been copied to the host on return; on CPU orbax holds views of them, and as long as it does
    XLA does not reuse their memory: a step that donates them allocates new memory instead.

    Args:
      step: names the folder.
      params, optimizer: trees of arrays (random keys as their data: `jax.random.key_data`).
      data_state: a JSON dictionary.
      metrics: rank the checkpoint if they have a finite `best_metric`.

    Returns:
      False if this step has been saved already; it is left unchanged.

    Raises:
      CheckpointError: this save or the previous one failed.
    """
    self.wait()
    self._saving = step
    try:
      if step in self._manager.all_steps():
        self._saving = None
        return False
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

  def _list_files(self) -> None:
    """Writes the manifest of the checkpoint being saved: all of it is there, under another name.

    Runs on one process, in a background thread.
    """
    step = self._saving
    assert step is not None
    unfinished = list(self._folder.glob(f"{step}.orbax-checkpoint-tmp*"))
    # An object store cannot rename: there it is a mark that makes a checkpoint complete.
    path = unfinished[0] if unfinished else self._folder / str(step)
    before = [saved for saved in saved_steps(self._folder) if saved < step]
    manifest.write(
      path,
      permanent=bool(before and self._keep_seconds)
      and manifest.is_of_earlier_interval(self._folder / str(before[-1]), self._keep_seconds),
    )

  def failure(self) -> CheckpointError | None:
    """The error of a save that has failed in the background; None while it is being written."""
    if self._saving is None or self._manager.is_saving_in_progress():
      return None
    try:
      self.wait()
    except CheckpointError as error:
      return error
    return None

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics measured after the save to a checkpoint; `best_metric` ranks it.

    Returns when both are on disk. Raises CheckpointError like `wait`.
    """
    self.wait()
    self._costs[step] = cost(metrics, self._best_metric)
    path = self._folder / str(step)
    if jax.process_index() == 0 and path.exists():
      file, content = path / "metrics" / "metrics", metrics_of(path)
      content |= {name: float(value) for name, value in metrics.items()}
      written = file.with_name("metrics.part")  # renamed: a process killed here leaves the old file
      try:
        file.parent.mkdir(exist_ok=True)
        written.write_text(json.dumps(content))
        written.replace(file)
      except OSError as error:
        raise CheckpointError(
          f"the metrics of checkpoint {step} in {self._folder} were not added: {reason_of(error)}"
        ) from error

  def wait(self) -> None:
    """Returns when the last save is complete. Raises CheckpointError if it failed."""
    try:
      if self._opened is not None:
        self._opened.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error
    self._saving = None

  def close(self) -> None:
    """Waits, then ends the background threads. Raises CheckpointError like `wait`."""
    try:
      self.wait()
    finally:
      self._close_manager()
      self._quiet.close()

  def restore(
    self, abstract_params: Any, abstract_optimizer: Any, *, vocab_size: int | None = None
  ) -> Restored | None:
    """The newest checkpoint that is not damaged, None if the folder has no checkpoint.

    A damaged one (files missing, or with another checksum) is renamed to `STEP.damaged`, with a
    warning, and the next older one is tried.

    Args:
      abstract_params, abstract_optimizer: trees of ShapeDtypeStruct with the shardings of the
        result; the mesh may differ from the one that wrote.
      vocab_size: as in `restore_params`; also for the optimizer's arrays of the same tables.

    Raises:
      CheckpointError: the checkpoint is of another model (names the first tensor that differs;
        nothing is moved), all of them are damaged, or the machine failed to read.
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
      _true_everywhere(True)  # no process lists the folder before it has been renamed
      self._close_manager()  # to list the steps anew
    if steps:
      raise CheckpointError(f"all {len(steps)} checkpoints in {self._folder} are damaged")
    return None

  def _restore_step(
    self, path: epath.Path, step: int, abstract_params: Any, abstract_optimizer: Any, vocab_size
  ) -> Restored:
    check_files(path, share=(jax.process_index(), jax.process_count()))
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
    """The error of a failed save; removes what it left, so that the next save can succeed."""
    step, self._saving = self._saving, None
    if jax.process_index() == 0:
      # It would keep a full disk full.
      for leftover in self._folder.glob(f"{step}.orbax-checkpoint-tmp*"):
        with contextlib.suppress(OSError):  # another item may still be being written
          leftover.rmtree()
    # Opened anew by the next save: orbax has dropped the steps that this one was to replace, and
    # would raise what else has failed of it then.
    with contextlib.suppress(Exception):
      self._close_manager()
    self._opened = None
    free_abandoned(error)
    last = latest_step(self._folder)
    remaining = "there is none before it" if last is None else f"the last good one is {last}"
    return CheckpointError(
      f"checkpoint {step} in {self._folder} was not saved: {reason_of(error)}; {remaining}"
    )


class _LatestAndBest:
  """Keeps the newest steps, the best by a metric, and those that are marked as permanent.

  orbax's AnyPreservationPolicy([LatestN, BestN]) sees neither metrics that were added after a save
  nor those of an earlier process, and keeps a NaN as a best one if there is nothing better.
  """

  def __init__(
    self, folder: epath.Path, metric: str, costs: Mapping[int, float], latest: int, best: int
  ):
    """costs: of the steps whose metric was measured after their save."""
    self._folder, self._metric, self._costs = folder, metric, costs
    self._latest, self._best = latest, best
    self._permanent: dict[int, bool] = {}

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    kept_for_good = {step for step in steps[:-1] if self._is_permanent(step)}
    ranked = sorted((self._cost(info), info.step) for info in checkpoints)
    keep = {step for cost_, step in ranked[: self._best] if math.isfinite(cost_)}
    keep |= set(steps[-self._latest :])
    keep |= kept_for_good
    return [step in keep for step in steps]

  def _is_permanent(self, step: int) -> bool:
    """Not asked of the newest, which is not complete yet; True if it cannot be read just now."""
    if step not in self._permanent:
      try:
        self._permanent[step] = manifest.is_permanent(self._folder / str(step))
      except OSError:
        return True
    return self._permanent[step]

  def _cost(self, info) -> float:
    if info.step in self._costs:
      return self._costs[info.step]
    metrics = info.metrics
    if metrics is None:  # saved without metrics, or by an earlier process
      metrics = metrics_of(self._folder / str(info.step))
    return cost(metrics, self._metric)


def _free_name(path: epath.Path) -> epath.Path:
  aside, count = path.with_name(f"{path.name}.damaged"), 1
  while aside.exists():
    aside, count = path.with_name(f"{path.name}.damaged.{count}"), count + 1
  return aside


def _true_everywhere(flag: bool) -> bool:
  """Whether `flag` is true in every process: each has read other files."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))
