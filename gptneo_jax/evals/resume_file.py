"""What a long evaluation has so far, kept beside its report, so that it goes on after a stop."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

from gptneo_jax.errors import UserError

_SECONDS = 30.0  # between two writes


class Partial:
  """FILE: the sums of an evaluation, and the settings that they belong to.

  Settings are a dictionary of what can change a number. JSON keeps every float exactly, so that
  what goes on from here ends in the same bits.
  """

  def __init__(self, path: str, settings: dict[str, Any], seconds: float = _SECONDS):
    self.path = pathlib.Path(path)
    self._settings = json.loads(json.dumps(settings))
    self._seconds, self._written = seconds, time.monotonic()

  def read(self) -> dict[str, Any] | None:
    """What was kept; None if nothing was, or if it was with other settings, which is said.

    Raises UserError if the file cannot be read.
    """
    try:
      kept = json.loads(self.path.read_text())
      settings, state = kept["settings"], kept["state"]
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{self.path} cannot be read ({error}); delete it to begin anew") from None
    changed = [key for key in self._settings if settings.get(key) != self._settings[key]]
    if changed or settings.keys() != self._settings.keys():
      print(f"{self.path} is of other settings ({', '.join(changed)}): beginning anew", flush=True)
      return None
    return state

  def write_if_due(self, state: dict[str, Any]) -> None:
    """Replaces the file at once and whole, if the last time was long enough ago.

    Raises UserError if it cannot be written.
    """
    if time.monotonic() - self._written < self._seconds:
      return
    new = self.path.with_name(self.path.name + ".new")
    try:
      with open(new, "w", encoding="utf-8") as file:
        json.dump({"settings": self._settings, "state": state}, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
      os.replace(new, self.path)
    except OSError as error:
      raise UserError(f"{self.path} cannot be written: {error.strerror}") from None
    self._written = time.monotonic()

  def remove(self) -> None:
    self.path.unlink(missing_ok=True)
