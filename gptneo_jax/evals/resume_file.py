"""Files in which a long evaluation keeps what it has computed, so that it resumes after a stop."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import IO, Any

from gptneo_jax.errors import UserError
from gptneo_jax.evals.atomic_file import write_atomically

_SECONDS = 30.0  # between two writes


class ResumeFile:
  """The state of an evaluation, such as its sums, and the settings that it belongs to.

  settings: everything that can change a number. JSON keeps every float exactly, so a resumed
    evaluation ends in the same bits.
  seconds: between two writes.
  """

  def __init__(self, path: str, settings: dict[str, Any], seconds: float = _SECONDS):
    self.path = pathlib.Path(path)
    self._settings = json.loads(json.dumps(settings))
    self._seconds, self._written = seconds, time.monotonic()

  def read(self) -> dict[str, Any] | None:
    """The state; None if there is no file, or if its settings differ, which is printed.

    Raises UserError if the file cannot be read.
    """
    try:
      content = json.loads(self.path.read_text())
      settings, state = content["settings"], content["state"]
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{self.path} cannot be read ({error}); delete it to start again") from None
    changed = [key for key in self._settings if settings.get(key) != self._settings[key]]
    if changed or settings.keys() != self._settings.keys():
      print(f"{self.path} has other settings ({', '.join(changed)}): starting again", flush=True)
      return None
    return state

  def write_if_due(self, state: dict[str, Any]) -> None:
    """Replaces the file if the last write is long enough ago; raises UserError if it cannot."""
    if time.monotonic() - self._written < self._seconds:
      return
    content = {"settings": self._settings, "state": state}
    write_atomically(self.path, json.dumps(content, allow_nan=False))
    self._written = time.monotonic()

  def remove(self) -> None:
    self.path.unlink(missing_ok=True)


class ResumeLog:
  """Finished items by key, appended to a JSONL file as they are finished.

  A context manager, which opens the file and reads what it holds; a last line that a stop has cut
  off is removed. Without a path, items are kept in memory only. Raises UserError if the file cannot
  be written or has a damaged line.
  """

  def __init__(self, path: str | None):
    self._path = path
    self._values: dict[str, Any] = {}

  def __enter__(self) -> ResumeLog:
    self._file: IO[bytes] | None = None
    if self._path is not None:
      try:
        self._file = open(self._path, "a+b")
        self._read(self._file)
      except OSError as error:
        raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
      except UserError:
        self.__exit__()
        raise
    return self

  def __exit__(self, *_) -> None:
    if self._file is not None:
      self._file.close()

  def _read(self, file: IO[bytes]) -> None:
    file.seek(0)
    complete = 0  # bytes of the lines that are
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):
        file.truncate(complete)
        break
      complete += len(line)
      try:
        entry = json.loads(line)
        self._values[entry["key"]] = entry["value"]
      except (ValueError, TypeError, KeyError):
        raise UserError(
          f"{self._path}:{number}: the line is damaged; remove the file to start again"
        ) from None

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def __getitem__(self, key: str) -> Any:
    return self._values[key]

  def add(self, values: dict[str, Any]) -> None:
    """Appends finished items, which are on disk on return."""
    self._values.update(values)
    if self._file is not None:
      rows = [{"key": key, "value": value} for key, value in values.items()]
      self._file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
      self._file.flush()
      os.fsync(self._file.fileno())
