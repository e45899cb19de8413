"""The arithmetic of the progress line."""

import io

import pytest

from gptneo_jax.training.progress import Progress
from tests.helpers.clock import Clock


def _progress(clock, stream=None, **options):
  defaults = {"total_steps": 100, "tokens_per_step": 1000}
  return Progress(**(defaults | options), stream=stream or io.StringIO(), clock=clock)


def test_the_compiling_step_is_not_in_the_rate():
  clock = Clock()
  progress = _progress(clock)
  clock.now += 60.0
  progress.update(1)
  assert progress.step_seconds is None and progress.seconds_left is None
  clock.now += 2.0
  progress.update(2)
  assert progress.step_seconds == 2.0 and progress.tokens_per_second == 500.0
  assert progress.seconds_left == 98 * 2.0
  clock.now += 40.0
  progress.update(12)  # ten steps at once, 4 s each: the median is 3
  assert progress.step_seconds == 3.0
  assert progress.seconds_left == 88 * 3.0


def test_sections_are_counted_apart_and_foreseen():
  clock = Clock()
  progress = _progress(clock, every={"eval": 30, "checkpoint": 50})
  progress.update(28)
  for step, eval_seconds in ((29, 0.0), (30, 100.0), (31, 0.0), (60, 10.0), (61, 0.0)):
    clock.now += step - progress._step  # a second each
    if eval_seconds:
      with progress.section("eval"):
        clock.now += eval_seconds
    progress.update(step)
  assert progress.step_seconds == 1.0
  # To come: 39 steps, the evaluations at 90 and at the end, 10 s each (the first one compiled).
  # Checkpoints have not been seen yet.
  assert progress.seconds_left == 39 + 2 * 10
  with progress.section("checkpoint"):
    clock.now += 5.0
  progress.update(62)
  assert progress.seconds_left == pytest.approx(38 * 1.0 + 2 * 10 + 1 * 5)
  progress.update(100)
  assert progress.seconds_left == 0


def test_a_section_that_fails_is_still_counted():
  clock = Clock()
  progress = _progress(clock)
  progress.update(1)
  with pytest.raises(RuntimeError), progress.section("eval"):
    clock.now += 7.0
    raise RuntimeError
  clock.now += 1.0
  progress.update(2)
  assert progress.step_seconds == 1.0


def test_plain_lines_where_there_is_no_terminal():
  clock, stream = Clock(), io.StringIO()
  progress = _progress(clock, stream, first_step=40)
  progress.update(41, loss=9.5)
  clock.now += 60.0
  progress.update(42)
  clock.now += 60.0
  progress.update(43, loss=3.25)
  progress.close()
  assert stream.getvalue() == (
    "step 41/100: loss 9.5000\nstep 43/100: loss 3.2500, 17 tokens/s, 0:57:00 left\n"
  )


def test_a_bar_on_a_terminal():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  clock, stream = Clock(), Terminal()
  progress = _progress(clock, stream)
  progress.update(1)
  clock.now += 1.0
  progress.update(2, loss=3.25)
  progress.close()
  assert "2/100, loss 3.2500, 1,000 tokens/s, 0:01:38 left" in stream.getvalue()
  assert stream.getvalue().endswith("\n")


def test_disabled_progress_is_silent_and_measures():
  clock, stream = Clock(), io.StringIO()
  progress = _progress(clock, stream, enabled=False)
  progress.update(1, loss=1.0)
  clock.now += 1.0
  progress.update(2, loss=1.0)
  assert stream.getvalue() == "" and progress.step_seconds == 1.0
