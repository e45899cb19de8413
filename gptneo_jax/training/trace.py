"""Traces of the profiler: of the steps that a config names, or asked for while a run goes on."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from gptneo_jax.errors import first_line
from gptneo_jax.training import multihost

REQUEST = "profile_now"  # file in the run's folder; may hold the number of steps
_STEPS = 5  # that are traced where no number is given
_LOOK_SECONDS = 1.0  # between two looks for the file


class Trace:
  """Traces steps to WORKDIR/profile.

  Those of the config on every host. Those asked for by SIGUSR2 on the host that got it; by the file
  WORKDIR/profile_now, which is removed, on host 0, if the folder is a local one. A trace that
  cannot be made is a line, and the run goes on.
  """

  def __init__(self, workdir: epath.Path, profile: ConfigDict, say: Callable[[str], None]):
    """Listens for SIGUSR2 until it is closed.

    profile: of the config: `first_step`, and `steps` from it on. say: prints a line.
    """
    self._folder, self._say = str(workdir / "profile"), say
    self._first, self._last = profile.first_step, profile.first_step + profile.steps
    self._traced: range | None = None  # of the trace that is being made
    self._signalled, self._looked = False, -math.inf
    watched = multihost.is_host0() and "://" not in str(workdir)
    self._request = workdir / REQUEST if watched else None
    self._before: Any = None
    # Python gives signals to the main thread only, and Windows has none of this name.
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR2"):
      self._before = signal.signal(signal.SIGUSR2, self._receive) or signal.SIG_DFL

  def _receive(self, *_: Any) -> None:
    self._signalled = True

  def before(self, step: int, previous: Any) -> None:
    """Starts a trace, or ends one, before a step. previous: arrays of the step before it."""
    if self._traced is not None:
      if step in self._traced:
        return
      jax.block_until_ready(previous)  # the last step that is traced may be running still
      self._stop()
    if steps := self._asked_for(step):
      self._start(range(step, step + steps))

  def _asked_for(self, step: int) -> int:
    """How many steps are to be traced from this one on; 0 for none."""
    if self._first <= step < self._last:
      return self._last - step
    if self._signalled:
      self._signalled = False
      return _STEPS
    if self._request is None or time.monotonic() - self._looked < _LOOK_SECONDS:
      return 0
    self._looked = time.monotonic()
    try:
      text = self._request.read_text().strip()
      self._request.unlink()
    except FileNotFoundError:
      return 0
    except (OSError, UnicodeDecodeError) as error:  # else every second anew
      self._say(f"{self._request} is not looked at any more: {first_line(error)}")
      self._request = None
      return 0
    if text.isdecimal() and int(text) > 0:
      return int(text)
    if text:
      self._say(f"{REQUEST} holds {text[:40]!r}, which is no number of steps: {_STEPS} are traced")
    return _STEPS

  def _start(self, steps: range) -> None:
    try:
      jax.profiler.start_trace(self._folder)
    except Exception as error:  # the folder cannot be written, another trace is being made
      self._say(f"no trace: {first_line(error)}")
      self._last = self._first  # else before each step of the config's anew
      return
    self._traced = steps

  def _stop(self) -> None:
    assert self._traced is not None
    steps, self._traced = self._traced, None
    try:
      jax.profiler.stop_trace()
    except Exception as error:
      self._say(f"no trace: {first_line(error)}")
      return
    self._say(
      f"steps {steps[0]} to {steps[-1]} are traced in {self._folder}; to look at them:"
      f" pip install xprof, xprof --logdir {self._folder}"
    )

  def close(self) -> None:
    """Ends a trace that is being made; restores the signal's handler."""
    if self._traced is not None:
      self._stop()
    if self._before is not None:
      signal.signal(signal.SIGUSR2, self._before)
      self._before = None
