"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from gptneo_jax.errors import UserError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, needed_bytes: int) -> Iterator[pathlib.Path]:
  """Gives a temporary folder that becomes `path` when the block ends well, and goes away if not.

  Raises UserError where `path` is not local, is there and not empty, or has less space than
  `needed_bytes`; and for a disk that fills up meanwhile.
  """
  if "://" in str(path):
    raise UserError(f"{path} is not a local folder: convert into one, then copy it there")
  path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f"{path} is there already and not empty: give a new folder, or remove it first")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
      raise UserError(
        f"{path}: {needed_bytes / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free there"
      )
    # Beside it, so that the renaming stays within one file system.
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  except OSError as error:
    raise UserError(f"{path} cannot be made: {error.strerror or error}") from None
  try:
    yield temporary
    temporary.chmod(0o777 & ~_umask())
    os.rename(temporary, path)  # also over an empty folder
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(f"{path}: the disk is full; nothing was left there") from None
    raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
