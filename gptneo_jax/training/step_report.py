"""What a run reports of its steps: metrics and progress; losses that end it, steps skipped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from gptneo_jax.errors import UserError
from gptneo_jax.training import memory_estimate, multihost
from gptneo_jax.training.machine_figures import memory_in_use_bytes
from gptneo_jax.training.metrics import MetricWriter
from gptneo_jax.training.progress import Progress
from gptneo_jax.training.setup import Run
from gptneo_jax.training.summary import Summary
from gptneo_jax.training.tasks import Batches


class StepReports:
  """Waits for steps and makes their lines of metrics.jsonl; shows the progress on host 0.

  The share of waiting for data is of the time between two lines, or since `begin`.
  """

  def __init__(
    self,
    run: Run,
    workdir: epath.Path,
    record: Mapping[str, Any],
    *,
    batches: Batches,
    summary: Summary,
    say: Callable[[str], None],
    peak_flops: float,
    last_saved: Callable[[], int | None],
    first_step: int,
    resume_step: int | None,
  ):
    """Opens the files of metrics.

    Args:
      record: of the run, for wandb.
      summary: is given the loss of each step, and whether it was skipped.
      say: prints a line.
      peak_flops: FLOP/s of one device.
      last_saved: the newest checkpoint there is, once it is written.
      first_step: steps done before.
      resume_step: the last step whose line is kept; None for a new run, which keeps none.
    """
    config, host0 = run.config, multihost.is_host0()
    self._steps, self._every = config.steps, config.log_every
    self._flops_per_token = run.model_config.flops_per_token(config.seq_len)
    self._peak_flops = peak_flops * jax.device_count()
    self._learning_rate, self._train_metrics = run.learning_rate, run.task.train_metrics
    self._batches, self._summary, self._last_saved = batches, summary, last_saved
    self._say = say
    self._writer = MetricWriter(
      str(workdir),
      resume_step=resume_step,
      wandb_project=config.wandb_project or None,
      run=record,
      enabled=host0,
    )
    self._progress = Progress(
      config.steps,
      tokens_per_step=config.batch_size * config.seq_len,
      first_step=first_step,
      every={"eval": config.eval_every, "checkpoint": config.checkpoint_every},
      enabled=host0,
    )
    self.begin()

  def begin(self) -> None:
    """A save or an evaluation is over."""
    self._waited, self._clock = self._batches.wait_seconds, time.perf_counter()

  def section(self, name: str) -> contextlib.AbstractContextManager[None]:
    """Times what is not a step: 'eval', 'checkpoint'."""
    return self._progress.section(name)

  def write(self, step: int, line: Mapping[str, float]) -> None:
    """Writes the line of a step, if it holds anything."""
    if line:
      self._writer.write(step, line)

  def __call__(
    self, step: int, metrics: dict[str, jax.Array], epochs: dict[str, float]
  ) -> dict[str, float]:
    """The line of a step, empty if none is due.

    epochs: those of the data when its batch had been taken.
    Raises UserError at a loss that is not finite if such steps are not skipped, and at too many
    that are, one after the other.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    loss, grad_norm = values["loss"], values.pop("grad_norm")
    skipped, counted = values.pop("skipped", 0.0) > 0, self._summary.skipped
    updates = step - 1 - counted.total  # before this step
    if line := counted.add(step, skipped, loss, grad_norm):
      self._say(line)
    elif not (math.isfinite(loss) and math.isfinite(grad_norm)):
      raise UserError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped before anything of it was"
        f" saved. {self._last_good()}. Steps like it are skipped with --config.skip.nonfinite=True"
      )
    else:
      self._summary.add_loss(loss)
    if problem := counted.problem(step):
      raise UserError(f"{problem}. {self._last_good()}")
    due = step % self._every == 0 or step == self._steps
    self._progress.update(step, loss if due else None)
    if not due:
      return {}
    waited = (self._batches.wait_seconds - self._waited) / (time.perf_counter() - self._clock)
    self.begin()
    line = {
      **{f"train/{name}": value for name, value in self._train_metrics(values).items()},
      "train/grad_norm": grad_norm,
      "train/learning_rate": float(self._learning_rate(updates)),
      **({"train/skipped": counted.total} if counted.are_told else {}),
      **_named(epochs),
      "perf/data_wait_fraction": waited,
      "perf/memory_gib": memory_in_use_bytes(jax.local_devices()) / memory_estimate.GIB,
    }
    if (seconds := self._progress.step_seconds) and (rate := self._progress.tokens_per_second):
      line["perf/step_seconds"] = seconds
      line["perf/tokens_per_second"] = rate
      line["perf/mfu"] = rate * self._flops_per_token / self._peak_flops
    return line

  def _last_good(self) -> str:
    good = self._last_saved()
    return "There is no checkpoint" if good is None else f"The last good checkpoint is step {good}"

  def close(self) -> None:
    """Ends the progress bar, and writes out what is still in memory."""
    self._progress.close()
    self._writer.close()


def _named(epochs: dict[str, float]) -> dict[str, float]:
  """`data/epoch`; of each source of a mixture by its name."""
  if len(epochs) == 1:
    return {"data/epoch": next(iter(epochs.values()))}
  return {f"data/epoch/{name}": value for name, value in epochs.items()}
