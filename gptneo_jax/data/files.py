"""The files that a path names: local, gs://, s3:// and whatever else fsspec opens."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from gptneo_jax.data.documents import BadRecords, DataError, warn_once
from gptneo_jax.errors import first_line

_NOT_SOURCE = "__pycache__"
GIT_LFS = b"version https://git-lfs"  # first bytes of the pointer that Git leaves for a large file


def file_system(path: str) -> tuple[Any, str]:
  """(fsspec file system, path in it); DataError if the scheme cannot be opened."""
  import fsspec

  try:
    return fsspec.core.url_to_fs(os.path.expanduser(path))
  except (ImportError, ValueError) as error:  # a missing gcsfs or s3fs, or an unknown scheme
    raise DataError(f"{path}: {first_line(error)}") from error


def refuse_pointer(path: str | os.PathLike) -> None:
  """Raises DataError if a local file is a Git LFS pointer."""
  if not os.path.isfile(path):
    return
  with open(path, "rb") as file:
    if file.read(len(GIT_LFS)) == GIT_LFS:
      raise DataError(
        f"{path} is a Git LFS pointer, not the file itself: fetch that with `git lfs pull` in its"
        " repository, or with `hf download`"
      )


def match_files(path: str, *, folders: bool) -> tuple[Any, list[str]]:
  """Files that globs match, or that are below folders, in sorted order.

  Links to files are files; links to folders, pipes and devices are skipped with one warning.

  Args:
    path: file, glob, or (with `folders`) folder; several are separated by commas.
    folders: whether a folder means everything below it except hidden names.

  Returns:
    (fsspec file system, paths in it); never empty.

  Raises:
    DataError: naming the part of `path` that matches nothing.
  """
  matched: set[str] = set()
  systems: list[Any] = []
  for part in split_paths(path):
    fs, found = _match(part, folders)
    systems.append(fs)
    matched |= found
  if any(fs is not systems[0] for fs in systems):
    raise DataError(f"{path}: these are on several file systems; data.mixture reads them together")
  return systems[0], sorted(matched)


def split_paths(path: str) -> list[str]:
  """The paths in a list with commas; a local file whose name holds a comma is one path."""
  if os.path.exists(os.path.expanduser(path)):
    return [path]
  return [part.strip() for part in path.split(",") if part.strip()] or [path]


@contextlib.contextmanager
def opened(fs, path: str, bad_records: BadRecords) -> Iterator[Any]:
  """The file open for reading bytes; None if it cannot be read and `bad_records` skips it.

  Raises DataError if it cannot be read.
  """
  try:
    file = fs.open(path, "rb")
  except (FileNotFoundError, PermissionError) as error:
    reason = "a broken link" if os.path.islink(path) else error.strerror or str(error)
    bad_records.add_file(path, f"cannot be read: {reason}")
    yield None
    return
  except OSError as error:
    raise DataError(f"{path}: cannot be read: {error}") from error
  with file:
    try:
      yield file
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error}") from error


def _match(path: str, folders: bool) -> tuple[Any, set[str]]:
  fs, root = file_system(path)
  try:
    if fs.isdir(root):
      if not folders:
        raise DataError(
          f"{path}: this is a folder; give a glob of its files, such as"
          f" {path.rstrip('/')}/*.jsonl.zst"
        )
      found = fs.find(root, detail=True)
      found = {name: info for name, info in found.items() if _is_source(name[len(root) :])}
    elif fs.isfile(root):  # also a file whose name holds glob characters
      return fs, {root}
    elif fs.exists(root):
      raise DataError(f"{path}: a pipe or device, not a file that can be read several times")
    else:
      found = fs.glob(root, detail=True)
  except OSError as error:
    raise DataError(f"{path}: cannot be listed: {error}") from error
  files = {name for name, info in found.items() if _is_file(name, info)}
  if others := sorted(name for name in found.keys() - files if _is_odd(found[name])):
    warn_once(
      f"{path}: skipped {len(others)} link(s) to folders, pipes or devices, such as {others[0]}"
    )
  if not files:
    raise DataError(f"{path}: no file matches")
  return fs, files


def _is_file(name: str, info: dict[str, Any]) -> bool:
  """Whether it is a file or a link to one; so is a broken link, which fails when it is read."""
  if not info.get("islink"):
    return info["type"] == "file"
  try:
    return stat.S_ISREG(os.stat(name).st_mode)
  except OSError:
    return True


def _is_odd(info: dict[str, Any]) -> bool:
  return info["type"] != "directory"


def _is_source(below: str) -> bool:
  parts = below.strip("/").split("/")
  return not any(part.startswith(".") or part == _NOT_SOURCE for part in parts)


def file_size(fs, path: str) -> int:
  """Bytes, 0 where the store does not tell."""
  try:
    return fs.size(path) or 0
  except OSError:
    return 0
