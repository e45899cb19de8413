"""What a step of training reports: its line of metrics.jsonl; a loss not finite; a trace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.training import memory_estimate
from gptneo_jax.training.metrics import Progress, memory_in_use_bytes
from gptneo_jax.training.optimizer import Schedule


class StepReports:
  """Waits for steps and makes their lines; times between `begin` and a step, or two steps, count
  for the share of waiting for data."""

  def __init__(
    self,
    config: ConfigDict,
    model_config: ModelConfig,
    *,
    learning_rate: Schedule,
    batches: data.TrainBatches,
    progress: Progress,
    peak_flops: float,
    last_saved: Callable[[], int | None],
  ):
    """peak_flops: FLOP/s of one device. last_saved: the newest checkpoint that stands."""
    self._steps, self._every = config.steps, config.log_every
    self._flops_per_token = model_config.flops_per_token(config.seq_len)
    self._peak_flops = peak_flops * jax.device_count()
    self._learning_rate, self._batches, self._progress = learning_rate, batches, progress
    self._last_saved = last_saved
    self.begin()

  def begin(self) -> None:
    """A save or an evaluation is over."""
    self._waited, self._clock = self._batches.wait_seconds, time.perf_counter()

  def __call__(
    self, step: int, metrics: dict[str, jax.Array], epochs: dict[str, float]
  ) -> dict[str, float]:
    """The line of a step, empty if none is due. Raises UserError at a loss that is not finite.

    epochs: those of the data when its batch had been taken.
    """
    loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
      good = self._last_saved()
      stands = (
        "No checkpoint stands" if good is None else f"The last good checkpoint is step {good}"
      )
      raise UserError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped before anything of it was"
        f" saved. {stands}"
      )
    due = step % self._every == 0 or step == self._steps
    self._progress.update(step, loss if due else None)
    if not due:
      return {}
    waited = (self._batches.wait_seconds - self._waited) / (time.perf_counter() - self._clock)
    self.begin()
    line = {
      "train/loss": loss,
      "train/perplexity": math.exp(min(loss, 700.0)),
      "train/grad_norm": grad_norm,
      "train/learning_rate": float(self._learning_rate(step - 1)),
      **_named(epochs),
      "perf/data_wait_fraction": waited,
      "perf/memory_gib": memory_in_use_bytes(jax.local_devices()) / memory_estimate.GIB,
    }
    if (seconds := self._progress.step_seconds) and (rate := self._progress.tokens_per_second):
      line["perf/step_seconds"] = seconds
      line["perf/tokens_per_second"] = rate
      line["perf/mfu"] = rate * self._flops_per_token / self._peak_flops
    return line


def _named(epochs: dict[str, float]) -> dict[str, float]:
  """`data/epoch`; of each source of a mixture by its name."""
  if len(epochs) == 1:
    return {"data/epoch": next(iter(epochs.values()))}
  return {f"data/epoch/{name}": value for name, value in epochs.items()}


class Trace:
  """The profiler's window: config.profile.steps steps from first_step on, to WORKDIR/profile."""

  def __init__(self, workdir: epath.Path, profile: ConfigDict):
    self._folder = str(workdir / "profile")
    self._first, self._end = profile.first_step, profile.first_step + profile.steps
    self._running = False

  def before(self, step: int) -> None:
    if not self._running and self._first <= step < self._end:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif step >= self._end:
      self.close()

  def close(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
