"""Saves a run's checkpoints, and goes on or stops where one cannot be saved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from gptneo_jax import data
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.reading import reason_of
from gptneo_jax.checkpoints.step_folders import CheckpointError, latest_step
from gptneo_jax.errors import UserError
from gptneo_jax.state import TrainState
from gptneo_jax.training import multihost, run_state
from gptneo_jax.training.setup import Run
from gptneo_jax.training.step_report import StepReports
from gptneo_jax.training.summary import Summary
from gptneo_jax.training.tasks import Batches

_AGAIN_SECONDS = 60  # after which a save that failed is made again
_PAUSES = (0, 10, 60)  # seconds before each of the tries after a last save that failed


class Saving:
  """Saves steps. A save that fails is said, and made again later, or ends the run by config.

  It ends a run of several processes in any case, on all of them: they save together.
  """

  def __init__(
    self,
    run: Run,
    workdir: epath.Path,
    checkpoints: Checkpointer,
    *,
    batches: Batches,
    summary: Summary,
    write_files: Callable[[], None],
    say: Callable[[str], None],
  ):
    """write_files: writes what the folder holds beside checkpoints, where it was removed."""
    self._run, self._workdir, self._checkpoints = run, workdir, checkpoints
    self._batches, self._summary, self._write_files = batches, summary, write_files
    self._say = say
    self._ends = run.config.on_failed_save == "stop" or jax.process_count() > 1
    self._failure: CheckpointError | None = None  # of the last save
    self._again_at = 0.0

  def __call__(
    self, reports: StepReports, step: int, state: TrainState, line: dict[str, float]
  ) -> None:
    """Saves a step with its line of metrics; returns while it is still being written.

    Raises CheckpointError for a save that failed, this one or the one before, if that ends the run.
    """
    data_state = data.merge_states(multihost.gather_objects(self._batches.get_state()))
    with reports.section("checkpoint"):
      self._attempt(self._checkpoints.wait)
      self._failure = None
      self._attempt(
        lambda: self._checkpoints.save(
          step,
          params=run_state.saved_params(self._run, state),
          optimizer=run_state.all_but_params(state),
          data_state=data_state
          | {"summary": self._summary.get_state()}
          | run_state.saved_history(state),
          metrics=line,
        )
      )
      self._attempt(lambda: self._write_beside(state))

  def _write_beside(self, state: TrainState) -> None:
    try:
      if multihost.is_host0() and not (self._workdir / "config.json").exists():
        if self._run.method.lora is not None:
          raise UserError(
            f"{self._workdir} was removed, and with it the weights that its factors belong to:"
            " start the run again"
          )
        self._write_files()
      run_state.write_adapter(self._run, self._workdir, state)
    except OSError as error:
      raise CheckpointError(f"cannot write in {self._workdir}: {reason_of(error)}") from error

  def _attempt(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except CheckpointError as error:
      self._failed(error)

  def _failed(self, error: CheckpointError) -> None:
    if self._ends:
      raise error
    self._failure, self._again_at = error, time.monotonic() + _AGAIN_SECONDS
    self._say(
      f"warning: {error}. The run goes on, and saves again in {_AGAIN_SECONDS} s or at its end"
      " (--config.on_failed_save=stop ends it instead)"
    )

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds what was measured after the save of a step. Raises CheckpointError like a save."""
    self._attempt(self._checkpoints.wait)
    try:
      self._checkpoints.add_metrics(step, metrics)
    except CheckpointError as error:
      if self._ends:
        raise
      self._say(f"warning: {error}")

  def is_owed(self) -> bool:
    """Whether a save that failed is to be made again now. Raises CheckpointError like a save."""
    if jax.process_count() == 1 and (failure := self._checkpoints.failure()):
      self._failed(failure)
    return self._failure is not None and time.monotonic() >= self._again_at

  def last_saved(self) -> int | None:
    """The newest checkpoint there is, once it is written or has failed."""
    with contextlib.suppress(CheckpointError):
      self._checkpoints.wait()
    return latest_step(self._workdir)

  def finish(self, save_again: Callable[[], None]) -> None:
    """Waits for the last save, and makes it again a few times if it failed.

    save_again: starts it, as `__call__` does.

    Raises CheckpointError if it failed every time, or the first time if that ends the run.
    """
    self._attempt(self._checkpoints.wait)
    for pause in _PAUSES:
      if not self._failure:
        return
      time.sleep(pause)
      save_again()
      self._attempt(self._checkpoints.wait)
    if self._failure:
      raise self._failure
