"""The progress of a run: step, loss, tokens per second and the time left."""

import collections
import contextlib
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import tqdm


def print_above(text: str) -> None:
  """Prints a line above the progress bar, if there is one."""
  tqdm.tqdm.write(text)
  sys.stdout.flush()


class Progress:
  """Shows step, loss, tokens per second and the time left, on a terminal as a bar, else in lines.

  The first step, which compiles, is left out of the rate, and so is time spent in `section`s.
  The time left is that of the steps to come at the median of the recent ones, plus that of the
  sections to come at the median of those seen.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    tokens_per_step: int,
    first_step: int = 0,
    every: Mapping[str, int] | None = None,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the display.

    Args:
      total_steps: the last step.
      tokens_per_step: of the global batch.
      first_step: steps done by earlier processes.
      every: for each section, how many steps lie between two of it; one more comes at the end.
      enabled: False shows nothing, but still measures.
      stream: default standard error.
      clock: seconds, for tests.
    """
    self._total, self._tokens_per_step = total_steps, tokens_per_step
    self._every = {name: steps for name, steps in (every or {}).items() if steps}
    self._clock = clock
    self._step, self._in_sections = first_step, 0.0
    self._since: float | None = None
    self._step_times = collections.deque(maxlen=20)
    self._section_times = collections.defaultdict(list)
    self._stream = (stream or sys.stderr) if enabled else None
    self._bar = None
    if self._stream and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=first_step,
        file=self._stream,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
      )

  def update(self, step: int, loss: float | None = None) -> None:
    """Notes that `step` steps are done; shows them if their loss is given (a logging step)."""
    now = self._clock()
    if self._since is not None and step > self._step:
      spent = now - self._since - self._in_sections
      self._step_times.append(spent / (step - self._step))
    self._step, self._since, self._in_sections = step, now, 0.0
    if loss is not None and self._stream:
      self._show(loss)

  @contextlib.contextmanager
  def section(self, name: str) -> Iterator[None]:
    """Times what is not a step: 'eval', 'checkpoint'."""
    start = self._clock()
    try:
      yield
    finally:
      spent = self._clock() - start
      self._in_sections += spent
      self._section_times[name].append(spent)

  @property
  def step_seconds(self) -> float | None:
    """Median seconds of a step, over the last 20 updates; None before the second update."""
    return statistics.median(self._step_times) if self._step_times else None

  @property
  def tokens_per_second(self) -> float | None:
    """Tokens of the global batch over `step_seconds`."""
    seconds = self.step_seconds
    return self._tokens_per_step / seconds if seconds else None

  @property
  def seconds_left(self) -> float | None:
    """Estimate of the time to the end; None before the second update."""
    if self.step_seconds is None:
      return None
    left = (self._total - self._step) * self.step_seconds
    for name, every in self._every.items():
      times = self._section_times[name]
      if times:  # the first of several holds the compilation
        left += self._sections_to_come(every) * statistics.median(times[1:] or times)
    return left

  def _sections_to_come(self, every: int) -> int:
    if self._step >= self._total:
      return 0
    at_the_end = bool(self._total % every)
    return self._total // every - self._step // every + at_the_end

  def _show(self, loss: float) -> None:
    parts = [f"loss {loss:.4f}"]
    rate, left = self.tokens_per_second, self.seconds_left
    if rate is not None and left is not None:
      parts.append(f"{rate:,.0f} tokens/s")
      parts.append(f"{datetime.timedelta(seconds=round(left))} left")
    if self._bar is not None:
      self._bar.n = self._step
      self._bar.set_postfix_str(", ".join(parts))  # and redraws
    else:
      print(f"step {self._step}/{self._total}: {', '.join(parts)}", file=self._stream, flush=True)

  def close(self) -> None:
    """Ends the bar; what is printed next is on a line of its own."""
    if self._bar is not None:
      self._bar.close()
