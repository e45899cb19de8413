"""Token shards: documents that have been encoded once, to be read from any place on.

A shard is a few files of one folder, each written aside and renamed, NAME.json last:

  NAME.bin   ids of its documents, uint16 or uint32, little-endian; each ends with the end of text
  NAME.idx   where each document ends, uint64, little-endian, in ids from the beginning of the shard
  NAME.json  what it was made of, how much it holds, and checksums
  NAME.validation.jsonl.zst   the documents that were held out, as text; if there are any

A folder of shards is one sequence of ids, that of their names. It is nowhere merged into larger
files: its index is the list of the manifests. prepare.json says what all were made with.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gptneo_jax.data.block_cache import DEFAULT_GIB
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.remote_folder import FIRST_TRIES, WholeFiles, is_url, remote_folder
from gptneo_jax.data.remote_shards import RemoteShard, open_shards
from gptneo_jax.data.shard_manifest import (
  AGAIN,
  BLOCK,
  SETTINGS,
  VALIDATION,
  Manifest,
  write_aside,
)

_INDEX = np.dtype("<u8")


def write_shard(
  folder: pathlib.Path, name: str, documents: Sequence[np.ndarray], validation: bytes, **about: Any
) -> Manifest:
  """Writes a shard of documents, ids with the end of text.

  validation: content of NAME.validation.jsonl.zst. about: fields of the manifest that cannot be
  counted here.
  """
  dtype = np.dtype(about["dtype"]).newbyteorder("<")
  ids = np.concatenate([np.zeros(0, dtype), *documents], dtype=dtype, casting="unsafe").tobytes()
  ends = np.cumsum([len(document) for document in documents], dtype=_INDEX).tobytes()
  others = {".idx": ends, VALIDATION: validation}
  manifest = Manifest(
    documents=len(documents),
    tokens=len(ids) // dtype.itemsize,
    blocks=[zlib.crc32(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK)],
    checksums={ending: zlib.crc32(content) for ending, content in others.items()},
    **about,
  )
  write_aside(folder / f"{name}.bin", ids)
  for ending, content in others.items():
    if content or ending == ".idx":
      write_aside(folder / f"{name}{ending}", content)
  manifest.write(folder / f"{name}.json")
  return manifest


class Shard:
  """A shard that is there. Raises DataError if its files have not the size that they should."""

  def __init__(self, path: pathlib.Path):
    """path: of NAME.json."""
    self.manifest = Manifest.read(path)
    self._path = path
    self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
    self._checked = np.zeros(len(self.manifest.blocks), bool)
    self._ids: np.ndarray | None = None
    self._check_size(".bin", self.manifest.bytes)
    self._check_size(".idx", self.manifest.documents * _INDEX.itemsize)

  def read(self, start: int, end: int) -> np.ndarray:
    """Ids from `start` to `end`, of the stored type.

    Raises DataError where the file does not hold what was written: each block is checked when
    something of it is read for the first time.
    """
    if self._ids is None:
      self._ids = np.memmap(self._path.with_suffix(".bin"), self._dtype, "r")
    size = self._dtype.itemsize
    for block in range(start * size // BLOCK, -(-end * size // BLOCK)):
      if not self._checked[block]:
        per_block = BLOCK // size
        content = self._ids[block * per_block : (block + 1) * per_block].tobytes()
        if zlib.crc32(content) != self.manifest.blocks[block]:
          raise self._damaged(".bin", f"bytes {block * BLOCK:,} to {(block + 1) * BLOCK:,}")
        self._checked[block] = True
    return self._ids[start:end]

  def ends(self) -> np.ndarray:
    """Where each document ends, uint64."""
    return np.frombuffer(self._content(".idx"), _INDEX)

  def check(self) -> None:
    """Reads all of it; raises DataError if anything is not as it was written."""
    if self.manifest.tokens:
      self.read(0, self.manifest.tokens)
    ends = self.ends()
    if len(ends) and (ends[-1] != self.manifest.tokens or (np.diff(ends) < 1).any()):
      raise self._damaged(".idx", "its documents are not in order")
    if self.manifest.checksums.get(VALIDATION):
      self._content(VALIDATION)

  def _content(self, ending: str) -> bytes:
    path = self._path.with_suffix(ending)
    try:
      content = path.read_bytes()
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
    if zlib.crc32(content) != self.manifest.checksums.get(ending):
      raise self._damaged(ending, "its checksum differs")
    return content

  def _check_size(self, ending: str, expected: int) -> None:
    path = self._path.with_suffix(ending)
    try:
      size = path.stat().st_size
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
    if size != expected:
      raise self._damaged(ending, f"it has {size:,} bytes and should have {expected:,}")

  def _damaged(self, ending: str, what: str) -> DataError:
    return DataError(f"{self._path.with_suffix(ending)}: damaged: {what}; {AGAIN}")


class TokenShards:
  """The shards of a folder as one sequence of ids.

  shards: their names. tokens: how many ids there are, each of `itemsize` bytes, together `bytes`.
  room: bytes of the cache that a folder behind a URL is read through, else None.
  """

  def __init__(self, folder: str, cache: str = "", cache_gib: float = DEFAULT_GIB):
    """folder: local, or a URL; cache, cache_gib: as `remote_folder` takes them.

    Raises DataError if something is missing, does not belong together, or has another size.
    """
    self._remote = remote_folder(folder, cache, cache_gib) if is_url(folder) else None
    self.room = self._remote.cache.limit if self._remote else None
    root = pathlib.Path(os.path.expanduser(folder))
    try:
      settings = (
        self._remote.text(SETTINGS, FIRST_TRIES) if self._remote else (root / SETTINGS).read_bytes()
      )
      sources = [str(source) for source in json.loads(settings.decode())["sources"]]
      if not sources:
        raise ValueError("it names no files")
    except (OSError, ValueError, TypeError, KeyError) as error:
      raise DataError(
        f"{folder}: not a folder that gptneo_jax.prepare made: {SETTINGS}: {error}"
      ) from None
    found: dict[str, Shard] | dict[str, RemoteShard]
    if self._remote:
      found = open_shards(self._remote, sources)
    else:
      found = {path.stem: Shard(path) for path in root.glob(f"*-{'[0-9]' * 6}.json")}
    self.shards = sorted(found)
    self._shards = [found[name] for name in self.shards]
    self.manifests = [shard.manifest for shard in self._shards]
    _check_complete(folder, sources, self.manifests)
    for name, manifest in zip(self.shards, self.manifests):
      for field in ("tokenizer", "end_of_text", "dtype"):
        if getattr(manifest, field) != getattr(self.manifests[0], field):
          raise DataError(f"{folder}: {name} and {self.shards[0]} differ in {field}")
    self.folder, self.itemsize = folder, np.dtype(self.manifests[0].dtype).itemsize
    self._starts = [0, *itertools.accumulate(manifest.tokens for manifest in self.manifests)]
    self.tokens = self._starts[-1]
    self.bytes = self.tokens * self.itemsize
    self.end_of_text = self.manifests[0].end_of_text
    self.tokenizer = self.manifests[0].tokenizer

  def size(self, shard: int) -> int:
    """Bytes of ids."""
    return self.manifests[shard].bytes

  def ids(self, start: int, count: int) -> np.ndarray:
    """int32 ids from place `start` of the sequence on. Raises DataError for a damaged shard."""
    parts = [
      self._shards[number].read(first, end).astype(np.int32)
      for number, first, end in self._places(start, count)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def ahead(self, start: int, count: int) -> None:
    """Says that these ids will be read soon: those behind a URL are fetched in other threads."""
    for number, first, end in self._places(start, count):
      shard = self._shards[number]
      if isinstance(shard, RemoteShard):
        shard.fetch_ahead(first, end)

  def held_out(self) -> WholeFiles | None:
    """The files of held-out documents behind a URL; None of a local folder."""
    if self._remote is None:
      return None
    sums = {
      f"{name}{VALIDATION}": manifest.checksums[VALIDATION]
      for name, manifest in zip(self.shards, self.manifests)
      if manifest.checksums.get(VALIDATION)
    }
    return WholeFiles(self._remote, sums)

  def _places(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(number, first, end) of the ids of each shard that `count` ids from `start` on are in."""
    number = bisect.bisect_right(self._starts, start) - 1
    while count:
      first = start - self._starts[number]
      end = min(first + count, self.manifests[number].tokens)
      if end > first:
        yield number, first, end
        start, count = start + end - first, count - (end - first)
      number += 1


def _check_complete(folder: str, sources: Sequence[str], manifests: Sequence[Manifest]) -> None:
  """Raises DataError if not all shards of all files are there."""
  following, done = dict.fromkeys(sources, 0), set()
  for manifest in sorted(manifests, key=lambda manifest: manifest.first):
    if manifest.first == following.get(manifest.source):
      following[manifest.source] = manifest.end
      if manifest.last:
        done.add(manifest.source)
  if missing := [source for source in sources if source not in done]:
    raise DataError(
      f"{folder}: not all of {missing[0]} is prepared: run gptneo_jax.prepare again to go on"
    )


def subsets_of(manifests: Sequence[Manifest]) -> Mapping[str, np.ndarray]:
  """(documents, tokens, bytes) of each subset."""
  found: dict[str, np.ndarray] = {}
  for manifest in manifests:
    for name, counts in manifest.subsets.items():
      found[name] = found.get(name, np.zeros(3, np.int64)) + np.asarray(counts)
  return found
