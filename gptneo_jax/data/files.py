"""Files behind a path: local, gs://, s3:// and whatever else fsspec opens."""

import os
from typing import Any

from gptneo_jax.data.documents import DataError

_NOT_SOURCE = "__pycache__"


def file_system(path: str) -> tuple[Any, str]:
  """(fsspec file system, path in it); DataError when the scheme cannot be opened."""
  import fsspec

  try:
    return fsspec.core.url_to_fs(os.path.expanduser(path))
  except (ImportError, ValueError) as error:  # a missing gcsfs or s3fs, or an unknown scheme
    raise DataError(f"{path}: {str(error).splitlines()[0]}") from error


def match_files(path: str, *, folders: bool) -> tuple[Any, list[str]]:
  """Files that a glob matches, or that stand below a folder, in sorted order.

  Args:
    path: file, glob, or (with `folders`) folder.
    folders: whether a folder stands for everything below it, hidden names left out.

  Returns:
    (fsspec file system, paths in it); never empty.

  Raises:
    DataError: naming `path` when it matches nothing.
  """
  fs, root = file_system(path)
  try:
    if fs.isdir(root):
      if not folders:
        raise DataError(
          f"{path}: this is a folder; give a glob of its files, such as"
          f" {path.rstrip('/')}/*.jsonl.zst"
        )
      found = [name for name in fs.find(root) if _is_source(name[len(root) :])]
    elif fs.isfile(root):  # also a file whose name holds glob characters
      return fs, [root]
    else:
      found = [name for name, info in fs.glob(root, detail=True).items() if info["type"] == "file"]
  except OSError as error:
    raise DataError(f"{path}: cannot be listed: {error}") from error
  if not found:
    raise DataError(f"{path}: no file matches")
  return fs, sorted(found)


def _is_source(below: str) -> bool:
  parts = below.strip("/").split("/")
  return not any(part.startswith(".") or part == _NOT_SOURCE for part in parts)
