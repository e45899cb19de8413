"""Keeps orbax's messages off the terminal while it runs, and changes nothing on import."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"  # in the path of its files


class _NotOfOrbax(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or _ORBAX not in record.pathname


class _NotOfTasks(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    return re.match(r"\w+ exception was never retrieved", record.getMessage()) is None


_OF_ORBAX, _ABANDONED = _NotOfOrbax(), _NotOfTasks()


def quiet_orbax() -> contextlib.AbstractContextManager[None]:
  """Drops what orbax logs through absl: a dozen lines for each save, and every error twice.

  No error is lost: orbax also raises each of them, and here they become CheckpointError.
  """
  return _filtered("absl", _NotOfOrbax())


@contextlib.contextmanager
def quiet_abandoned() -> Iterator[None]:
  """Drops what Python reports, with tracebacks, of the reads or writes that orbax abandons when one
  fails.

  These are exceptions of its coroutines and tasks, and callbacks to an event loop that it has
  closed. No handler can be given to its loop: the hook and the logger are the process's, and all
  other reports pass.
  """
  before = sys.unraisablehook

  def hook(report: Any) -> None:
    code = getattr(report.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and _ORBAX in code.co_filename
    if not of_orbax and str(report.exc_value) != "Event loop is closed":
      before(report)

  sys.unraisablehook = hook
  try:
    with _filtered("asyncio", _NotOfTasks()):
      yield
  finally:
    sys.unraisablehook = before


def free_abandoned(error: BaseException) -> None:
  """Frees what reads or writes that failed hold: arrays are not in memory any more.

  Some of it is freed later, and some threads of orbax fail later, at the end of the program too:
  from here on what is said of them is dropped for good.
  """
  logging.getLogger("asyncio").addFilter(_ABANDONED)
  logging.getLogger("absl").addFilter(_OF_ORBAX)
  traceback.clear_frames(error.__traceback__)
  time.sleep(0.05)  # until those under way have ended
  gc.collect()


@contextlib.contextmanager
def _filtered(logger_name: str, others_only: logging.Filter) -> Iterator[None]:
  logger = logging.getLogger(logger_name)
  logger.addFilter(others_only)
  try:
    yield
  finally:
    logger.removeFilter(others_only)
