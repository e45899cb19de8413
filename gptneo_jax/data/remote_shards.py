"""Token shards in a folder behind a URL: read block by block, by way of a cache on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gptneo_jax.data import shard_manifest
from gptneo_jax.data.remote_folder import Block, RemoteFolder
from gptneo_jax.data.shard_manifest import BLOCK

_OPENED_AT_ONCE = 16  # manifests that are fetched together


class RemoteShard:
  """A shard in a folder behind a URL; its blocks are fetched and checked when they are read."""

  def __init__(self, folder: RemoteFolder, name: str):
    """Raises FileNotFoundError if there is none of that name, DataError if it cannot be read."""
    self.manifest = shard_manifest.parse(folder.text(f"{name}.json"), f"{folder.url}/{name}.json")
    self._folder, self._file = folder, f"{name}.bin"
    self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")

  def read(self, start: int, end: int) -> np.ndarray:
    """As Shard.read."""
    first, past = (place * self._dtype.itemsize for place in (start, end))
    parts = []
    for block in self._blocks(start, end):
      within = max(first - block.start, 0), min(past - block.start, BLOCK)
      parts.append(self._folder.read(block, *within))
    return np.frombuffer(b"".join(parts), self._dtype)

  def fetch_ahead(self, start: int, end: int) -> None:
    self._folder.ahead(self._blocks(start, end))

  def _blocks(self, start: int, end: int) -> list[Block]:
    """Those that hold the ids from `start` to `end`."""
    size, whole = self._dtype.itemsize, self.manifest.bytes
    return [
      Block(
        self._file, self.manifest.blocks[n], n * BLOCK, min((n + 1) * BLOCK, whole), whole
      )
      for n in range(start * size // BLOCK, -(-end * size // BLOCK))
    ]  # fmt: skip


def open_shards(folder: RemoteFolder, sources: Sequence[str]) -> dict[str, RemoteShard]:
  """The shards of files by their names: those of a file are numbered, and its last one says so.

  Raises DataError if one cannot be read; one that is not there ends those of its file.
  """

  def of(source: str) -> dict[str, RemoteShard]:
    shards: dict[str, RemoteShard] = {}
    while True:
      name = f"{source}-{len(shards):06d}"
      try:
        shards[name] = RemoteShard(folder, name)
      except FileNotFoundError:
        return shards
      if shards[name].manifest.last:
        return shards

  with ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
    parts = list(threads.map(of, sources))
  return {name: shard for part in parts for name, shard in part.items()}
