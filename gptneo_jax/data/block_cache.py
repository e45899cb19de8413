"""A folder on disk for blocks that were fetched: bounded, checked, shared by processes.

A block is a file, named by a hash of what it is; it is written aside and renamed, and read only
where its checksum fits. Those that were read longest ago leave. So any number of processes use one
folder without knowing of each other, and a block that is damaged or gone is fetched again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import threading
import zlib

from gptneo_jax.data.documents import DataError, warn_once

DEFAULT_GIB = 32.0
_SCANS = 16  # of the folder, while the limit is written once; it is filled up to one part less
_FILE = re.compile(r"[0-9a-f]{32}(\.[0-9.]+\.part)?")  # nothing else is ever removed


class BlockCache:
  """Blocks by their keys, 32 hexadecimal digits.

  limit: bytes. Several processes that fill one folder exceed it by a sixteenth each at most.
  """

  def __init__(self, folder: str = "", gib: float = DEFAULT_GIB):
    """folder: '' is that of the user's caches; nothing is made before the first block comes."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    above = os.path.expanduser(folder) or os.path.join(home, "gptneo_jax")
    self.folder, self.limit = pathlib.Path(above) / "token_blocks", int(gib * 2**30)
    self._checked: set[str] = set()  # by this process
    self._unseen: int | None = None  # bytes written since the folder was looked through
    self._lock, self._numbers = threading.Lock(), itertools.count()

  def check_folder(self) -> None:
    """Raises DataError if nothing can be written there."""
    try:
      aside = self._aside("0" * 32)
      aside.parent.mkdir(parents=True, exist_ok=True)
      aside.write_bytes(b"")
      aside.unlink()
    except OSError as error:
      raise DataError(
        f"{self.folder}: blocks cannot be kept there: {error.strerror}; name another folder with"
        " data.cache"
      ) from None

  def has(self, key: str) -> bool:
    """Whether the block is there; it may still turn out to be damaged."""
    return self._path(key).exists()

  def read(self, key: str, crc: int, start: int = 0, end: int | None = None) -> bytes | None:
    """Bytes of a block from `start` to `end`; None if they are not there as they were written.

    Its checksum is computed when something of it is read for the first time.
    """
    path = self._path(key)
    try:
      with open(path, "rb") as file:
        os.utime(path)
        if key in self._checked and end is not None:
          file.seek(start)
          content = file.read(end - start)
          return content if len(content) == end - start else None
        content = file.read()
    except OSError:  # most often: it is not there
      return None
    if zlib.crc32(content) != crc:
      return None
    self._checked.add(key)
    return content[start:end]

  def write(self, key: str, content: bytes) -> None:
    """Keeps a block that has been checked; a disk that is full is said once, and is no error."""
    self._make_room(len(content))
    aside = self._aside(key)
    try:
      aside.parent.mkdir(parents=True, exist_ok=True)
      aside.write_bytes(content)
      path = self._path(key)
      path.parent.mkdir(exist_ok=True)
      os.replace(aside, path)
      self._checked.add(key)
    except OSError as error:
      warn_once(f"{self.folder}: blocks cannot be kept ({error.strerror}), and are fetched again")
      with contextlib.suppress(OSError):
        aside.unlink()

  def _make_room(self, size: int) -> None:
    with self._lock:
      if self._unseen is not None and self._unseen + size <= self.limit // _SCANS:
        self._unseen += size
        return
      self._unseen = size
    files, total = [], 0
    for path in self.folder.glob("*/*"):
      with contextlib.suppress(OSError):  # another process has just removed it
        if _FILE.fullmatch(path.name):
          about = path.stat()
          files.append((about.st_mtime_ns, about.st_size, path))
          total += about.st_size
    kept = {path.name for *_, path in files}
    for _, freed, path in sorted(files):
      if total + size <= self.limit - self.limit // _SCANS:
        break
      with contextlib.suppress(OSError):
        path.unlink()
      total -= freed
      kept.discard(path.name)
    self._checked.intersection_update(kept)

  def _path(self, key: str) -> pathlib.Path:
    return self.folder / key[:2] / key

  def _aside(self, key: str) -> pathlib.Path:
    """In a folder of its own kind, so that what a killed process leaves is found and leaves too."""
    return self.folder / "aside" / f"{key}.{os.getpid()}.{next(self._numbers)}.part"
