"""Progress of what takes long: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
from typing import Any

import tqdm

_SECONDS = 30.0  # between two lines


def progress_bar(**options: Any) -> tqdm.tqdm:
  """tqdm's bar with these options of tqdm's, on standard error."""
  return tqdm.tqdm(**options) if sys.stderr.isatty() else _Lines(**options)


class _Lines(tqdm.tqdm):
  """Without a terminal: no carriage returns, and nothing before something is done."""

  def __init__(self, **options: Any):
    self._shown = options.get("initial", 0)
    options |= {"mininterval": _SECONDS, "maxinterval": _SECONDS, "miniters": 1, "ncols": 0}
    super().__init__(file=sys.stderr, **options)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    if self.n != self._shown and self.format_dict["elapsed"] >= self.delay:
      self._shown = self.n
      print(self, file=self.fp, flush=True)

  def clear(self, *_: Any, **__: Any) -> None:
    """A line that is printed stays."""

  def close(self) -> None:
    if not self.disable:
      self.display()
      self.leave = False  # no line end after it
    super().close()
