"""Keeps orbax's log lines off the terminal while it runs, and changes nothing on import."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator


class _NotOfOrbax(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


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
