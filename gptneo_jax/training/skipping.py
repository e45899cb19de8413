"""Steps that change nothing: a loss or gradients that are not finite, or far above those before.

What decides is in the compiled step (`guard`); what is said of it is counted here, on the host. The
rule of spikes is that of OLMo's SkipStepOptimizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.steps import Guard

_LOSSES, _NORMS, _COUNT = "losses", "grad_norms", "count"


@dataclasses.dataclass(frozen=True)
class SkipConfig:
  """Which steps are skipped. Raises ValueError on a value out of range.

  Attributes:
    nonfinite: those whose loss or gradients are not finite.
    spike_sigmas: those whose loss or gradient norm is further above the mean of the steps before
      than this many of their standard deviations; 0: none.
    window: the number of these steps, of those that were not skipped.
    most: so many steps in a row end the run.
  """

  nonfinite: bool = False
  spike_sigmas: float = 0.0
  window: int = 128
  most: int = 10

  def __post_init__(self):
    if not 0 <= self.spike_sigmas < math.inf:
      raise ValueError(f"skip.spike_sigmas is {self.spike_sigmas}; it must be 0 (off) or more")
    if self.window < 4:
      raise ValueError(f"skip.window is {self.window}; it must be at least 4")
    if self.most < 1:
      raise ValueError(f"skip.most is {self.most}; it must be at least 1")

  @property
  def is_on(self) -> bool:
    return self.nonfinite or self.spike_sigmas > 0


# --- in the compiled step -------------------------------------------------------------------------


def guard(config: SkipConfig) -> Guard | None:
  """What decides in a step whether it is skipped; None if no step ever is.

  A spike is one only after half a window of steps. One-sided: a loss that falls fast is welcome.
  Its history, only there where spikes are skipped: the losses and gradient norms of the last steps,
  the newest last, and how many there are. Those of skipped steps are not among them.
  """
  if not config.is_on:
    return None

  def init() -> Any:
    if not config.spike_sigmas:
      return {}
    zeros = lambda: jnp.zeros(config.window, jnp.float32)  # an array each: a step donates them
    return {_LOSSES: zeros(), _NORMS: zeros(), _COUNT: jnp.zeros((), jnp.int32)}

  def check(history: Any, loss: jax.Array, grad_norm: jax.Array) -> tuple[jax.Array, Any]:
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    skipped = ~finite if config.nonfinite else jnp.zeros((), bool)
    if not config.spike_sigmas:
      return skipped, history
    count = history[_COUNT]
    known = jnp.arange(config.window) >= config.window - count

    def is_spike(x: jax.Array, before: jax.Array) -> jax.Array:
      mean = jnp.where(known, before, 0.0).sum() / jnp.maximum(count, 1)
      squares = jnp.where(known, (before - mean) ** 2, 0.0).sum()
      deviation = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
      return x > mean + config.spike_sigmas * deviation

    spikes = is_spike(loss, history[_LOSSES]) | is_spike(grad_norm, history[_NORMS])
    skipped |= finite & spikes & (count >= config.window // 2)
    push = lambda before, x: jnp.concatenate([before[1:], x.astype(jnp.float32)[None]])
    grown = {
      _LOSSES: push(history[_LOSSES], loss),
      _NORMS: push(history[_NORMS], grad_norm),
      _COUNT: jnp.minimum(count + 1, config.window),
    }
    return skipped, jax.tree.map(lambda old, new: jnp.where(skipped, old, new), history, grown)

  return Guard(init, check)


# --- in a checkpoint ------------------------------------------------------------------------------

# With the data's state, as JSON, and not among the optimizer's arrays: these must be the same
# whether anything is skipped or not, so that a run can resume with that changed.


def history_as_json(history: Any) -> dict[str, list[float]]:
  """What a checkpoint stores of a guard's history; float32 comes back as it was."""
  if not history:
    return {}
  known = jax.device_get(history)
  count = int(known[_COUNT])
  return {
    name: known[name][len(known[name]) - count :].astype(float).tolist()
    for name in (_LOSSES, _NORMS)
  }


def history_from_json(shapes: Any, saved: Mapping[str, list[float]]) -> Any:
  """A history of these shapes, with what was saved of one whose window may have been another."""
  history = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  if not history or not saved:
    return history
  count = min(history[_LOSSES].size, len(saved[_LOSSES]))
  for name in (_LOSSES, _NORMS):
    history[name][history[name].size - count :] = saved[name][len(saved[name]) - count :]
  return history | {_COUNT: np.asarray(count, np.int32)}


# --- on the host ----------------------------------------------------------------------------------


class SkippedSteps:
  """Counts the steps of a run that were skipped.

  Attributes:
    total: in the whole run.
    in_a_row: up to the last step.
  """

  def __init__(self, config: SkipConfig, state: Mapping[str, int]):
    """state: of `get_state`; {} for a new run."""
    self._config = config
    self.total, self.in_a_row = state.get("total", 0), state.get("in_a_row", 0)

  @property
  def are_told(self) -> bool:
    """Whether a record of the run has their number."""
    return self._config.is_on or self.total > 0

  def add(self, step: int, skipped: bool, loss: float, grad_norm: float) -> str:
    """Counts a step; what to say of it if it was skipped, else ''."""
    self.total += skipped
    self.in_a_row = self.in_a_row + 1 if skipped else 0
    if not skipped:
      return ""
    why = "not finite"
    if math.isfinite(loss) and math.isfinite(grad_norm):
      why = f"more than {self._config.spike_sigmas:g} standard deviations above the steps before"
    return (
      f"step {step} skipped, {why}: loss {loss:.4f}, gradient norm {grad_norm:.4g}"
      f" ({self.total} skipped so far)"
    )

  def problem(self, step: int) -> str:
    """What is wrong, and what to try, if too many were skipped in a row, else ''."""
    if self.in_a_row < self._config.most:
      return ""
    sigmas = ", a larger skip.spike_sigmas" if self._config.spike_sigmas else ""
    return (
      f"step {step}: skip.most steps in a row ({self._config.most}) were skipped, and nothing was"
      f" learned from them. To go on, resume with a lower optimizer.learning_rate{sigmas}, or, if"
      " these data alone are bad, a larger skip.most"
    )

  def get_state(self) -> dict[str, int]:
    """What a checkpoint stores of it."""
    return {"total": self.total, "in_a_row": self.in_a_row}
