"""A folder that appears complete or not at all."""

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
  """Gives a temporary folder, which is renamed to `path` at the end of the block.

  If the block raises, the folder is deleted. Raises UserError if `path` is not local, exists and
  is not empty, has less than `needed_bytes` of free space, or if the disk becomes full meanwhile.
  """
  if "://" in str(path):
    raise UserError(f"{path} is not a local folder: write to a local one, then copy it there")
  path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f"{path} already exists and is not empty: name a new one, or remove it first")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
      raise UserError(
        f"{path}: {needed_bytes / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free"
      )
    # In the same parent, so that renaming stays within one file system.
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  except OSError as error:
    raise UserError(f"{path} cannot be created: {error.strerror or error}") from None
  try:
    yield temporary
    temporary.chmod(0o777 & ~_umask())
    os.rename(temporary, path)  # replaces an empty folder
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(f"{path}: the disk is full; nothing was written") from None
    raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
