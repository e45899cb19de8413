"""Keeps orbax's messages off the terminal while it runs, and changes nothing on import."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"  # in the path of its files


class _NotOfOrbax(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or _ORBAX not in record.pathname


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
  """Drops what orbax logs through absl: a dozen lines for each save, and every error twice.

  No error is lost: orbax also raises each of them, and here they become CheckpointError.
  """
  logger, others_only = logging.getLogger("absl"), _NotOfOrbax()
  logger.addFilter(others_only)
  try:
    yield
  finally:
    logger.removeFilter(others_only)


@contextlib.contextmanager
def quiet_reads() -> Iterator[None]:
  """Drops what Python reports, with tracebacks, of the reads that orbax abandons when one fails.

  These are exceptions of its coroutines and callbacks to an event loop that it has closed. There is
  no handler of a single loop for them: the hook is the process's, and passes on all other reports.
  """
  before = sys.unraisablehook

  def hook(report: Any) -> None:
    code = getattr(report.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and _ORBAX in code.co_filename
    if not of_orbax and str(report.exc_value) != "Event loop is closed":
      before(report)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before
