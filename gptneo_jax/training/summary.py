"""What a run comes to: one block of text at its end, and summary.json.

Both are of the whole run, over all processes that worked at it: what they need is stored with each
checkpoint. The time after a save that a killed process did not survive is in neither.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from gptneo_jax.training.early_stopping import BestSoFar
from gptneo_jax.training.setup import Run
from gptneo_jax.training.skipping import SkipConfig, SkippedSteps

_FILE = "summary.json"


class Summary:
  """Adds up what a run has seen.

  Attributes:
    best: the best evaluation so far.
    skipped: the steps that changed nothing.
  """

  def __init__(self, run: Run, state: Mapping[str, Any]):
    """The clock goes on from here. state: of `get_state`; {} for a new run."""
    self._run = run
    self.best = BestSoFar(run.config.best_metric, run.config.patience)
    self.best.set_state(state.get("best", {}))
    self.skipped = SkippedSteps(SkipConfig(**run.config.skip.to_dict()), state.get("skipped", {}))
    self._loss_sum, self._losses = state.get("loss_sum", 0.0), state.get("losses", 0)
    self._start = time.monotonic() - state.get("seconds", 0.0)
    self._results: dict[str, float] = {}  # of the last evaluation
    self._final: dict[str, float] = {}

  def add_loss(self, loss: float) -> None:
    """Of one step that was not skipped."""
    self._loss_sum += loss
    self._losses += 1

  def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> str:
    """Counts what an evaluation measured, if anything, at a step.

    Returns what is wrong if best_metric is not there, and then counts nothing; else ''.
    """
    results = {name: value for name, value in metrics.items() if not name.startswith("perf/")}
    problem = self.best.problem(results)
    if results and not problem:
      self.best.update(step, results)
      self._results = results
    return problem

  def add_line(self, step: int, line: Mapping[str, float]) -> str:
    """`add_evaluation` of what a step's whole line of metrics has of one."""
    metric = self.best.metric
    return self.add_evaluation(
      step, {name: x for name, x in line.items() if name.startswith("eval/") or name == metric}
    )

  def add_final(self, metrics: Mapping[str, float]) -> None:
    """What was measured at the end: `test/…`, `eval/merged_loss`."""
    self._final |= metrics

  def get_state(self) -> dict[str, Any]:
    """What a checkpoint stores of it, as JSON can hold it."""
    return {
      "best": self.best.get_state(),
      "loss_sum": self._loss_sum,
      "losses": self._losses,
      "skipped": self.skipped.get_state(),
      "seconds": time.monotonic() - self._start,
    }

  def figures(self, step: int, epochs: Mapping[str, float]) -> dict[str, Any]:
    """In the names of transformers' Trainer; None where a number is not finite.

    Args:
      step: the last one.
      epochs: passes over each source; `epoch` is their mean.
    """
    config, seconds = self._run.config, time.monotonic() - self._start
    epoch = sum(epochs.values()) / max(len(epochs), 1)
    rows = step * config.batch_size
    examples = getattr(self._run.prepared, "examples_per_epoch", None)
    samples = rows if examples is None else epoch * examples
    figures = {
      "epoch": epoch,
      "steps": step,
      "total_flos": self._run.model_config.flops_per_token(config.seq_len) * rows * config.seq_len,
      "train_loss": self._loss_sum / self._losses if self._losses else None,
      "train_runtime": seconds,
      "train_samples_per_second": samples / seconds,
      "train_steps_per_second": step / seconds,
      **{name.replace("/", "_"): value for name, value in (self._results | self._final).items()},
    }
    if self.skipped.are_told:
      figures["skipped_steps"] = self.skipped.total
    if self.best.value is not None:
      figures["metric_for_best_model"] = self.best.metric
      figures |= {"best_metric": self.best.value, "best_step": self.best.step}
    finite = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    return {name: finite(value) for name, value in figures.items()}

  def is_written(self, workdir: epath.Path) -> bool:
    return (workdir / _FILE).exists()

  def write(self, workdir: epath.Path, step: int, epochs: Mapping[str, float]) -> str:
    """Writes FOLDER/summary.json; returns the same as lines to print."""
    figures = self.figures(step, epochs)
    part = workdir / f"{_FILE}.part"  # renamed: a process killed here leaves the old one
    part.write_text(json.dumps(figures, indent=2) + "\n")
    part.replace(workdir / _FILE)
    return block(figures)


def block(figures: Mapping[str, Any]) -> str:
  """The figures of a summary as lines to print."""
  samples, steps = (figures[f"train_{what}_per_second"] for what in ("samples", "steps"))
  time = datetime.timedelta(seconds=round(figures["train_runtime"]))
  rows = {
    "run time": f"{time}, {samples:,.1f} samples/s, {steps:,.3g} steps/s",
    "epochs": f"{figures['epoch']:.2f} in {figures['steps']:,} steps",
    "total FLOPs": f"{figures['total_flos']:.3g}",
    "training loss": f"{_number(figures['train_loss'])}, mean of all steps",
  }
  if skipped := figures.get("skipped_steps"):
    rows["training loss"] += f" but {skipped:,} that were skipped"
  for title, split in (("last evaluation", "eval_"), ("test", "test_")):
    measured = [
      f"{name.removeprefix(split)} {_number(value)}"
      for name, value in figures.items()
      if name.startswith(split)
    ]
    if measured:
      rows[title] = ", ".join(measured)
  if "best_step" in figures:
    metric = figures["metric_for_best_model"]
    rows["best"] = f"{metric} {_number(figures['best_metric'])} at step {figures['best_step']:,}"
  return "\n".join(["summary", *(f"  {name:<16} {text}" for name, text in rows.items())])


def _number(value: float | None) -> str:
  return "not finite" if value is None else f"{value:.4f}"
