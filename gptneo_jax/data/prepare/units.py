"""Units of work: the records of a file from one number to another become one shard.

A unit depends on its records and the settings alone, so it does not matter who does it, in which
order, or how often: the bytes are the same. What has been done is what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import zstandard

from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.prepare import duplicates
from gptneo_jax.data.prepare.checked_encoder import CheckedEncoder
from gptneo_jax.data.prepare.inputs import Inputs, Part, Settings
from gptneo_jax.data.shard_manifest import PART, SETTINGS, TOKENIZER, Manifest, write_aside
from gptneo_jax.data.splits import hash_position
from gptneo_jax.data.token_shards import Shard, write_shard
from gptneo_jax.data.tokenizer import (
  DocumentEncoder,
  load_tokenizer,
  save_tokenizer,
  vocabulary_size,
)

_CALL_CHARACTERS = 1 << 18  # of documents that are encoded in one call


def begin(settings: Settings, folder: pathlib.Path) -> list[str]:
  """Makes the folder with the tokenizer and the settings, or checks that they are the same.

  Returns the names of the files. Raises DataError.
  """
  if settings.tokenizer == "train":
    raise DataError("a run with data.tokenizer=train leaves one in its folder: name that folder")
  inputs = Inputs(settings)
  tokenizer = load_tokenizer(settings.tokenizer)
  encoder = DocumentEncoder(tokenizer)
  now: dict[str, Any] = dataclasses.asdict(settings)
  del now["path"]  # the same files may be elsewhere
  now |= {
    "tokenizer": encoder.fingerprint(),
    "sources": inputs.names,
    "bytes": inputs.sizes,
  }
  encoder.close()
  path = folder / SETTINGS
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    _save_once(tokenizer, folder / TOKENIZER)
    write_aside(path, json.dumps(now, indent=1).encode())
    return inputs.names
  before = json.loads(path.read_text(encoding="utf-8"))
  for name in now:
    if before.get(name) != now[name]:
      raise DataError(
        f"{folder} was made with another {name}, {_short(before.get(name))}, and now it is"
        f" {_short(now[name])}: give another folder, or remove this one"
      )
  return inputs.names


def _save_once(tokenizer: Any, folder: pathlib.Path) -> None:
  """Other parts may begin at the same time."""
  aside = folder.with_name(f"{TOKENIZER}.{os.getpid()}{PART}")
  save_tokenizer(tokenizer, str(aside))
  try:
    aside.rename(folder)
  except OSError:  # it is there
    shutil.rmtree(aside)


def clear(folder: pathlib.Path) -> None:
  """Removes what processes that were killed have left; no other may be at work."""
  for path in folder.glob(f"*{PART}"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}…"


def run(
  settings: Settings, folder: pathlib.Path, part: Part, say: Callable[[str], object]
) -> Iterator[tuple[str, int]]:
  """Does a part of the work; yields (name, tokens) of each of its shards, the old ones too.

  say: called with a line for each shard that is damaged; it is made anew. Raises DataError.
  """
  inputs = Inputs(settings)
  coder = _Coder.of(load_tokenizer(str(folder / TOKENIZER)), say)
  try:
    for number, name in enumerate(inputs.names):
      first, step = part.share(number, len(inputs.names))
      if step:
        read = functools.partial(inputs.read, number, end_of_text=coder.end_of_text)
        file = _File(settings, folder, name, coder)
        for shard, manifest in file.shards(read, first, step, say):
          yield shard, manifest.tokens
  finally:
    coder.encoder.exact.close()
    inputs.bad_records.log_summary()


class _Coder(NamedTuple):
  """How documents are stored. ids: how many the tokenizer has. The others: as in the manifest."""

  encoder: CheckedEncoder
  ids: int
  dtype: str
  end_of_text: int
  tokenizer: str

  @classmethod
  def of(cls, tokenizer: Any, say: Callable[[str], object]) -> _Coder:
    encoder, ids = CheckedEncoder(tokenizer, say), vocabulary_size(tokenizer)
    dtype = "uint16" if ids <= 1 << 16 else "uint32"
    return cls(encoder, ids, dtype, encoder.exact.end_of_text, encoder.exact.fingerprint())


class _File:
  """The shards of one file. Unit n holds its records from n * settings.records on."""

  def __init__(self, settings: Settings, folder: pathlib.Path, source: str, coder: _Coder):
    self._settings, self._folder, self._source, self._coder = settings, folder, source, coder
    self._removed = np.zeros(0, bool)  # which of its records are
    if settings.dedup != "none":
      self._removed = duplicates.removed_records(folder, source)

  def shards(
    self, read: Callable, first: int, step: int, say: Callable[[str], object]
  ) -> Iterator[tuple[str, Manifest]]:
    """Those of every step-th unit from `first` on: the whole ones that are there, and the others.

    read: gives the documents, or ids, whose records a function wants, with the number past each.
    """
    whole: dict[int, Manifest] = {}
    for unit, path in self._there():
      if unit % step == first:
        try:
          shard = Shard(path)
          shard.check()
          whole[unit] = shard.manifest
          yield path.stem, shard.manifest
        except DataError as error:
          say(str(error).partition("; ")[0])
    if not self._all_there(whole, first, step):
      yield from self._make(read, first, step, whole)

  def _there(self) -> list[tuple[int, pathlib.Path]]:
    name = re.compile(re.escape(self._source) + r"-(\d{6})\.json")
    found = [(name.fullmatch(path.name), path) for path in self._folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)

  def _all_there(self, whole: Mapping[int, Manifest], first: int, step: int) -> bool:
    """Whether no unit of these is missing: known once the last one of the file is there."""
    try:
      unit, path = self._there()[-1]
      last = Manifest.read(path).last
    except (IndexError, DataError):
      return False
    return last and whole.keys() >= set(range(first, unit + 1, step))

  def _make(
    self, read: Callable, first: int, step: int, whole: Mapping[int, Manifest]
  ) -> Iterator[tuple[str, Manifest]]:
    """Reads the file once, and makes the shards that are missing."""
    records, seen = self._settings.records, 0

    def wanted(record: int) -> bool:
      nonlocal seen
      seen = max(seen, record + 1)
      if record < len(self._removed) and self._removed[record]:
        return False
      return record // records % step == first and record // records not in whole

    following, documents = first, self._documents()  # the unit that is made now

    def finish(until: int, last: int | None) -> Iterator[tuple[str, Manifest]]:
      """Writes the missing units before `until`; only the first of them can have documents."""
      nonlocal following, documents
      while following < until:
        if following not in whole:
          yield self._write(following, documents, seen if following == last else None)
          documents = self._documents()
        following += step

    for past, document in read(wanted):
      yield from finish((past - 1) // records, None)
      documents.add(document)
    units = max(1, -(-seen // records))
    yield from finish(units, units - 1)

  def _documents(self) -> _Documents:
    return _Documents(self._source, self._coder, self._settings.validation_fraction)

  def _write(self, unit: int, documents: _Documents, file_end: int | None) -> tuple[str, Manifest]:
    """file_end: how many records the file has, if the unit is its last."""
    name, records = f"{self._source}-{unit:06d}", self._settings.records
    manifest = documents.write(
      self._folder, name, first=unit * records, last=file_end is not None,
      end=(unit + 1) * records if file_end is None else file_end,
    )  # fmt: skip
    return name, manifest


class _Documents:
  """The documents of a unit, encoded as they come."""

  def __init__(self, source: str, coder: _Coder, validation_fraction: float):
    self._source, self._coder, self._fraction = source, coder, validation_fraction
    self._ids: list[np.ndarray] = []
    self._texts: list[str] = []  # not encoded yet
    self._characters = 0  # of these
    self._about: list[tuple[str, int]] = []  # subset and bytes of each document
    self._held_out: list[bytes] = []
    coder.encoder.begin_shard()

  def add(self, document: Document | np.ndarray) -> None:
    if isinstance(document, np.ndarray):
      self._add_ids(document)
      return
    if hash_position(document.text) < self._fraction:
      record = {"text": document.text, "meta": {"pile_set_name": document.subset}}
      self._held_out.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
      return
    self._texts.append(document.text)
    self._about.append((document.subset, len(document.text.encode())))
    self._characters += len(document.text)
    if self._characters >= _CALL_CHARACTERS:
      self._encode()

  def _add_ids(self, ids: np.ndarray) -> None:
    """Of a file of ids: they may be several documents, and parts. None is held out."""
    wrong = ids[(ids < 0) | (ids >= self._coder.ids)]
    if len(wrong):
      raise DataError(
        f"{self._source}: there is an id {wrong[0]}; the tokenizer has 0 to {self._coder.ids - 1}"
      )
    ends = np.flatnonzero(ids == self._coder.end_of_text) + 1
    parts = [part.astype(self._coder.dtype) for part in np.split(ids, ends) if len(part)]
    self._ids += parts
    self._about += [(self._source, 0)] * len(parts)

  def _encode(self) -> None:
    end, dtype = [self._coder.end_of_text], self._coder.dtype
    encoded = self._coder.encoder.encode(self._texts)
    self._ids += [np.concatenate([ids, end]).astype(dtype) for ids in encoded]
    self._texts, self._characters = [], 0

  def write(self, folder: pathlib.Path, name: str, **about: Any) -> Manifest:
    self._encode()
    subsets: dict[str, list[int]] = {}
    for ids, (subset, size) in zip(self._ids, self._about):
      documents, tokens, text_bytes = subsets.get(subset, [0, 0, 0])
      subsets[subset] = [documents + 1, tokens + len(ids), text_bytes + size]
    held_out = zstandard.ZstdCompressor().compress(b"".join(self._held_out))
    return write_shard(
      folder, name, self._ids, held_out if self._held_out else b"", held_out=len(self._held_out),
      subsets=dict(sorted(subsets.items())), text_bytes=sum(size for _, size in self._about),
      source=self._source, dtype=self._coder.dtype, end_of_text=self._coder.end_of_text,
      tokenizer=self._coder.tokenizer, **about,
    )  # fmt: skip
