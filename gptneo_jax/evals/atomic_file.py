"""Text files that are replaced in one step."""

from __future__ import annotations

import os
import pathlib

from gptneo_jax.errors import UserError


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Replaces a file: it holds the old content or all of the new, also after a crash.

  Raises UserError if it cannot be written.
  """
  new = path.with_name(path.name + ".new")
  try:
    with open(new, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror}") from None
