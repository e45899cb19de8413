"""The best evaluation of a run so far, and its end where there is no better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptneo_jax.checkpoints.step_folders import BEST_METRIC, cost
from gptneo_jax.errors import did_you_mean


class BestSoFar:
  """Follows one metric over the evaluations of a run.

  Attributes:
    metric: its name; its direction is in that (`checkpoints.step_folders`).
    value, step: the best one and where it was measured, first if several times; None and 0 before.
    since: evaluations after it, none of which was better.
  """

  def __init__(self, metric: str, patience: int):
    """patience: so many evaluations without a better one end the run; 0: none do."""
    self.metric, self._patience = metric, patience
    self.value: float | None = None
    self.step = self.since = 0
    self._last = 0  # the step of the last evaluation that was counted

  @property
  def is_over(self) -> bool:
    """Whether the run is to end here."""
    return 0 < self._patience <= self.since

  def update(self, step: int, results: Mapping[str, float]) -> None:
    """Counts an evaluation, once; one without the metric counts as one that is not better."""
    if step <= self._last:
      return
    self._last = step
    before = math.inf if self.value is None else cost({self.metric: self.value}, self.metric)
    if cost(results, self.metric) < before:
      self.value, self.step, self.since = results[self.metric], step, 0
    else:
      self.since += 1

  def problem(self, results: Mapping[str, float]) -> str:
    """What is wrong if the results of an evaluation lack the metric, else ''.

    The one that nobody asked for may be missing.
    """
    nobody_asked = self.metric == BEST_METRIC and not self._patience
    if not results or self.metric in results or nobody_asked:
      return ""
    there = sorted(results)
    return (
      f"best_metric is {self.metric!r}, which the evaluation does not give"
      f"{did_you_mean(self.metric, there)}; it gives {', '.join(there)}"
    )

  def describe(self) -> str:
    """Why the run is over."""
    return (
      f"no {self.metric} better than {self.value:.6g} of step {self.step} in"
      f" {self.since} evaluations"
      if self.value is not None
      else f"no finite {self.metric} in {self.since} evaluations"
    )

  def get_state(self) -> dict[str, Any]:
    """What a checkpoint stores of it, as JSON can hold it."""
    return {
      "metric": self.metric,
      "value": self.value,
      "step": self.step,
      "since": self.since,
      "last": self._last,
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues from `get_state`; if that was of another metric, anew."""
    if state.get("metric") == self.metric:
      self.value, self.step = state["value"], state["step"]
      self.since, self._last = state["since"], state["last"]
