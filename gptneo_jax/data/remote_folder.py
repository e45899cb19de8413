"""Files of a folder behind a URL, in whole or by blocks: tried again, checked, kept on this disk.

Nothing is listed: plain https cannot be, and names that are known need not be.
"""

from __future__ import annotations

import functools
import hashlib
import io
import queue
import random
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from gptneo_jax.data.block_cache import DEFAULT_GIB, BlockCache
from gptneo_jax.data.documents import DataError, warn_once
from gptneo_jax.data.files import file_system
from gptneo_jax.errors import first_line

_TIMEOUT = 60.0  # seconds that a request for a block may take
_WHOLE_TIMEOUT = 600.0  # and one for a whole file
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries
TRIES = 10  # of a block in the middle of a run: some two minutes
FIRST_TRIES = 5  # of the first file, whose URL may be wrong: some seconds
_DAMAGED_TRIES = 3
_THREADS = 8  # that fetch blocks ahead
_LOCKS = 64

# What another try does not change.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_NOT_FINAL_STATUS = (408, 425, 429)  # timeout, too early, too many requests

_chance = random.SystemRandom()  # the generator of others stays as it is


class Block(NamedTuple):
  """Part of a file, from byte `start` to byte `end`, with its CRC-32; all of it if `end` is None.

  file_size: bytes of all of it, where only a part is meant.
  """

  name: str
  crc: int
  start: int = 0
  end: int | None = None
  file_size: int = 0

  def __str__(self) -> str:
    return "it" if self.end is None else f"bytes {self.start:,} to {self.end:,}"


def is_url(path: str) -> bool:
  return "://" in path


class RemoteFolder:
  """A folder behind any URL that fsspec opens.

  url: without a slash at the end.
  """

  def __init__(self, url: str, cache: BlockCache):
    """Raises DataError if the scheme cannot be opened, or the cache's folder not be written."""
    self.url, self.cache = url.rstrip("/"), cache
    self._fs, self._root = file_system(self.url)
    cache.check_folder()
    self._texts: dict[str, bytes] = {}
    self._locks = [threading.Lock() for _ in range(_LOCKS)]  # of blocks, by their keys
    self._wanted: queue.SimpleQueue[Block] = queue.SimpleQueue()
    self._threads: list[threading.Thread] = []

  def text(self, name: str, tries: int = TRIES) -> bytes:
    """A small file, read once in a process.

    Raises FileNotFoundError, and DataError if it cannot be read.
    """
    if name not in self._texts:
      self._texts[name] = fetch(self._fs, self._path(name), self._named(name), tries=tries)
    return self._texts[name]

  def read(self, block: Block, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of a block, counted from its start; from the cache if they are there.

    Raises DataError if it cannot be fetched, or not as it was written.
    """
    key = self._key(block)
    with self._lock(key):  # who fetches it ahead is waited for
      content = self.cache.read(key, block.crc, start, end)
      return self._fetch(key, block)[start:end] if content is None else content

  def ahead(self, blocks: Iterable[Block]) -> None:
    """Fetches blocks into the cache, in threads; what fails is met again where it is read."""
    for block in blocks:
      self._wanted.put(block)
    while len(self._threads) < _THREADS:
      # Daemons, for which the end of the program does not wait.
      thread = threading.Thread(target=self._fetch_ahead, name="blocks ahead", daemon=True)
      self._threads.append(thread)
      thread.start()

  def _fetch_ahead(self) -> None:
    while True:
      block = self._wanted.get()
      key = self._key(block)
      with self._lock(key):
        if not self.cache.has(key):
          try:
            self._fetch(key, block)
          except (DataError, FileNotFoundError):
            continue

  def _fetch(self, key: str, block: Block) -> bytes:
    where = self._named(block.name)
    for number in range(_DAMAGED_TRIES):
      if number:
        _wait(number)
      try:
        content = fetch(
          self._fs, self._path(block.name), where, block.start, block.end, block.file_size
        )
      except FileNotFoundError:
        raise DataError(f"{where}: there is no such file") from None
      if zlib.crc32(content) == block.crc:
        self.cache.write(key, content)
        return content
    raise DataError(
      f"{where}: damaged: {block}, fetched {_DAMAGED_TRIES} times, has another checksum; copy the"
      " file there again, or run gptneo_jax.prepare again, which makes it anew"
    )

  def _path(self, name: str) -> str:
    http = self._root.startswith(("http://", "https://"))
    return f"{self._root}/{urllib.parse.quote(name) if http else name}"

  def _named(self, name: str) -> str:
    return f"{self.url}/{name}"

  def _lock(self, key: str) -> threading.Lock:
    return self._locks[int(key[:8], 16) % _LOCKS]

  def _key(self, block: Block) -> str:
    what = "\n".join(map(str, (self.url, *block)))
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


class WholeFiles:
  """What readers of files need of an fsspec file system, for checked files of a RemoteFolder."""

  def __init__(self, folder: RemoteFolder, checksums: dict[str, int]):
    """checksums: CRC-32 by the file's name."""
    self._folder = folder
    self._blocks = {f"{folder.url}/{name}": Block(name, crc) for name, crc in checksums.items()}
    self.paths = sorted(self._blocks)

  def open(self, path: str, mode: str) -> io.BytesIO:
    """Raises DataError."""
    return io.BytesIO(self._folder.read(self._blocks[path]))

  def size(self, path: str) -> int:
    """0: not known before it is read."""
    return 0


@functools.lru_cache(maxsize=8)
def remote_folder(url: str, cache: str = "", cache_gib: float = DEFAULT_GIB) -> RemoteFolder:
  """The folder of a URL; one for all parts of a process, which open it several times.

  cache: folder of the blocks, '' the user's; cache_gib: its limit.
  """
  return RemoteFolder(url, BlockCache(cache, cache_gib))


def fetch(
  fs: Any, path: str, where: str, start: int = 0, end: int | None = None, size: int = 0,
  *, tries: int = TRIES,
) -> bytes:  # fmt: skip
  """A file, or its bytes from `start` to `end`; tried again where the network or a server fails.

  The waits double, with chance, so that many hosts do not come back together.

  Args:
    fs, path: fsspec's.
    where: the file in messages.
    size: bytes of the file, if only some of them are wanted.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: it cannot be read; names the last reason.
  """
  reason = ""
  for number in range(tries):
    if number:
      if number == 2:
        warn_once(f"{where}: cannot be read: {reason}; it is tried again")
      _wait(number)
    try:
      content = _request(fs, path, None if end is None else (start, end))
    except FileNotFoundError:
      raise
    except Exception as error:  # each store's client raises its own
      reason = _reason(error)
      if _is_final(error):
        break
      continue
    if end is None or len(content) == end - start:
      return content
    if len(content) == size:
      raise DataError(
        f"{where}: the server gives the whole file where a part is asked for; use one that answers"
        " range requests"
      )
    reason = f"{len(content):,} bytes came of {end - start:,}"
  raise DataError(f"{where}: cannot be read: {reason}")


def _request(fs: Any, path: str, part: tuple[int, int] | None) -> Any:
  bounds = {} if part is None else {"start": part[0], "end": part[1]}
  if not getattr(fs, "async_impl", False):
    return fs.cat_file(path, **bounds)
  from fsspec import asyn

  # As fs.cat_file, with an end: a connection may hang for good.
  timeout = _WHOLE_TIMEOUT if part is None else _TIMEOUT
  return asyn.sync(fs.loop, fs._cat_file, path, timeout=timeout, **bounds)


def _wait(number: int) -> None:
  """Before try `number`, from 1."""
  time.sleep(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (number - 1)) * _chance.uniform(0.5, 1))


def _is_final(error: Exception) -> bool:
  status = getattr(error, "status", None) or getattr(error, "code", None)
  refused = isinstance(status, int) and 400 <= status < 500 and status not in _NOT_FINAL_STATUS
  return refused or isinstance(error, _FINAL)


def _reason(error: Exception) -> str:
  if isinstance(error, TimeoutError) and not str(error):
    return "the answer takes too long"
  return first_line(error)
