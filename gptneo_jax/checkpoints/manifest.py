"""STEP/manifest.json: the files of a checkpoint with their sizes and CRC-32C checksums.

It is written before the checkpoint is complete, so each one has it; those of other programs, and of
versions before it, have none and are not checked. On an object store, which checks what it stores
itself, it holds sizes only: reading all of it again would take as long as writing it.
"""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Sequence
from typing import Any

import google_crc32c
from etils import epath

from gptneo_jax.errors import first_line

MANIFEST = "manifest.json"
_READ = 1 << 19  # bytes at once, of each thread: a model is converted in the memory of few tensors
_THREADS = 4
# Metrics may be added to a checkpoint that is complete.
ITEMS = ("params", "optimizer", "data")


def write(checkpoint: epath.Path, *, permanent: bool) -> None:
  """Lists the files that are there. permanent: whether the checkpoint is to be kept for good."""
  files = _files(checkpoint, ITEMS)
  content = {
    "written": time.time(),
    "permanent": permanent,
    "files": dict(zip(files, _map(_entry, [checkpoint / name for name in files]))),
  }
  part = checkpoint / f"{MANIFEST}.part"  # renamed: a process killed here leaves none
  part.write_text(json.dumps(content))
  part.replace(checkpoint / MANIFEST)


def read(checkpoint: epath.Path) -> dict[str, Any] | None:
  """The manifest; None where there is none. Raises ValueError for a damaged one, and OSError."""
  try:
    content = json.loads((checkpoint / MANIFEST).read_text())
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{MANIFEST} cannot be read: {first_line(error)}") from None
  files = content.get("files") if isinstance(content, dict) else None
  if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
    raise ValueError(f"{MANIFEST} does not list files")
  if any(".." in name.split("/") for name in files):
    raise ValueError(f"{MANIFEST} lists files of other folders")
  return content


def check(
  checkpoint: epath.Path, items: Sequence[str] = ITEMS, *, share: tuple[int, int] = (0, 1)
) -> None:
  """Raises ValueError naming the first file that is missing or is not as it was written, and
  OSError where the machine fails to read.

  items: of the checkpoint. share: number and count of the parts that its files are checked in.
  """
  content = read(checkpoint)
  if content is None:
    return
  number, count = share
  expected = {
    name: entry for name, entry in content["files"].items() if name.split("/")[0] in items
  }
  names = sorted(expected)[number::count]
  for name, found in zip(names, _map(_entry, [checkpoint / name for name in names])):
    if found is None:
      raise ValueError(f"{name} is missing")
    for field, words in (("bytes", "has another size"), ("crc32c", "has another checksum")):
      if found.get(field) != expected[name].get(field, found.get(field)):
        raise ValueError(f"{name} {words} than when it was written")


def is_permanent(checkpoint: epath.Path) -> bool:
  """Whether it is to be kept for good. Raises OSError."""
  try:
    content = read(checkpoint)
  except ValueError:
    return False
  return bool(content and content.get("permanent"))


def is_of_earlier_interval(checkpoint: epath.Path, seconds: float) -> bool:
  """Whether a checkpoint was written in an earlier interval of so many seconds, as a day is, than
  the present one; False if that is not known."""
  try:
    content = read(checkpoint)
  except (OSError, ValueError):
    return False
  written = content and content.get("written")
  return isinstance(written, float) and written // seconds < time.time() // seconds


def _files(checkpoint: epath.Path, items: Sequence[str]) -> list[str]:
  """Names of all files of these items, relative to the checkpoint."""
  found, folders = [], [checkpoint / item for item in items if (checkpoint / item).exists()]
  while folders:
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      else:
        found.append(path.relative_to(checkpoint).as_posix())
  return sorted(found)


def _entry(path: epath.Path) -> dict[str, int] | None:
  """Size and checksum of a file; None if it is not there."""
  try:
    if "://" in str(path):
      return {"bytes": path.stat().length}
    checksum = size = 0
    with path.open("rb") as file:
      while part := file.read(_READ):
        checksum, size = google_crc32c.extend(checksum, part), size + len(part)
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    return None
  return {"bytes": size, "crc32c": checksum}


def _map(function: Any, paths: Sequence[epath.Path]) -> list[Any]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(function, paths))
