"""From a config to sources: where documents are read, and which of them belong to a split."""

import dataclasses
import functools
import glob
import hashlib
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from gptneo_jax.data import tables
from gptneo_jax.data.auto_files import RECORDS, AutoFiles
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, Cursor, DataError, Document, Wanted, every_record
from gptneo_jax.data.file_formats import COMPRESSED_ENDINGS, ending
from gptneo_jax.data.files import match_files
from gptneo_jax.data.hf_datasets import HFDataset, check_dataset
from gptneo_jax.data.hub_revision import split_revision
from gptneo_jax.data.jsonl import JsonLines, json_lines
from gptneo_jax.data.shard_manifest import TOKENIZER, VALIDATION
from gptneo_jax.data.splits import (
  InMemorySource,
  Shares,
  cut_in_parts,
  hash_position,
  split_document,
  with_validation,
)
from gptneo_jax.data.text_files import stdlib_files, text_files
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.data.tokenizer import DocumentEncoder

SPLITS = ("train", "validation", "test")
_HELD_OUT = ("stdlib", "shards")  # sources that know what is held out of them
FILES = {"jsonl": False, "text": True, "auto": True}  # sources of files: whether of folders too


class Source(Protocol):
  """Shards of records; see JsonLines.read."""

  @property
  def shards(self) -> Sequence[str]: ...

  def size(self, shard: int) -> int: ...

  def read(
    self, shard: int, start: Cursor, wanted: Wanted
  ) -> Iterator[tuple[Cursor, Document]]: ...


@dataclasses.dataclass(frozen=True)
class Component:
  """A source, its weight in the mixture, and a rule: which documents belong to the split."""

  weight: float
  source: Source | TokenShards
  keep: Callable[[Document], bool]

  def documents(self) -> Iterator[Document]:
    """All its documents once, in source order. Raises DataError for token shards."""
    if isinstance(self.source, TokenShards):
      raise DataError(
        f"{self.source.folder} holds ids, and texts are needed: name the files that it was made of"
      )
    for shard in range(len(self.source.shards)):
      for _, document in self.source.read(shard, (0, 0), every_record):
        if self.keep(document):
          yield document


def open_components(config: DataConfig, split: str, bad_records: BadRecords) -> list[Component]:
  """The sources of one split.

  Raises:
    DataError: a source does not exist, or nothing is held out for this split.
  """
  if split not in SPLITS:
    raise ValueError(f"split '{split}' is none of {', '.join(SPLITS)}")
  if own_path := config.own_path(split):
    kind = config.entries[0][1]
    source = _open(config, "auto" if kind == "shards" else kind, own_path, split, bad_records)
    return [Component(1.0, source, _all_documents)]
  shares, opened = held_out_shares(config), []  # (weight, source, whether split by hashes)
  for weight, kind, path in config.entries:
    source, by_hash = _open(config, kind, path, split, bad_records), kind not in _HELD_OUT
    if by_hash and any(shares) and (only := _only_document(source)):
      source, by_hash = InMemorySource(split_document(only, shares, split)), False
    opened.append((weight, source, by_hash))
  if shares.validation and split != "test" and all(by_hash for *_, by_hash in opened):
    everything = (Component(1.0, source, _all_documents).documents() for _, source, _ in opened)
    texts = (document.text for document in itertools.chain.from_iterable(everything))
    shares = with_validation(shares, texts)
  low, high = shares.bounds(split)
  keep = _hash_rule(low, high)
  components = [
    Component(weight, source, keep if by_hash else _all_documents)
    for weight, source, by_hash in opened
    if (low < high if by_hash else source.shards)
  ]
  if not components:
    raise DataError(f"no {split} data: set data.{split}_path or data.{split}_fraction")
  return components


def _only_document(source: Source | TokenShards) -> Document | None:
  """The document of a source that has exactly one."""
  first = list(itertools.islice(Component(1.0, source, _all_documents).documents(), 2))
  return first[0] if len(first) == 1 else None


def divide_among_streams(components: Sequence[Component], num_streams: int) -> list[Component]:
  """The components; where one has fewer documents than there are streams, they are cut in parts."""
  divided = []
  for component in components:
    if isinstance(component.source, TokenShards):
      divided.append(component)
      continue
    documents = list(itertools.islice(component.documents(), num_streams))
    if 0 < len(documents) < num_streams:
      parts = cut_in_parts(documents, math.ceil(2 * num_streams / len(documents)))
      component = Component(component.weight, InMemorySource(parts), _all_documents)
    divided.append(component)
  return divided


def check_sources(config: DataConfig) -> None:
  """Raises DataError if a source does not exist; quick, since it reads no document."""
  paths = [(kind, path) for _, kind, path in config.entries]
  paths += [
    (config.entries[0][1], path) for path in (config.validation_path, config.test_path) if path
  ]
  for kind, path in paths:
    if kind in FILES:
      match_files(path, folders=FILES[kind])
    elif kind == "datasets":
      check_dataset(path)
    elif kind == "shards":
      token_shards(config, path)
    else:
      stdlib_files("train", BadRecords("stop"))


def check_shards(components: Sequence[Component], encoder: DocumentEncoder) -> None:
  """Raises DataError if token shards were made with another tokenizer."""
  for component in components:
    source = component.source
    if isinstance(source, TokenShards) and source.tokenizer != encoder.fingerprint():
      raise DataError(
        f"{source.folder} was prepared with another tokenizer than data.tokenizer; its own is"
        f" {source.folder}/{TOKENIZER}"
      )


def has_split(config: DataConfig, split: str) -> bool:
  """Whether anything is held out for a split."""
  low, high = held_out_shares(config).bounds(split)
  kinds = [kind for _, kind, _ in config.entries]
  return bool(config.own_path(split)) or low < high or "stdlib" in kinds


def source_files(config: DataConfig, split: str) -> dict[str, Callable[[], BinaryIO]]:
  """The files that a split is read from: path -> function that opens it for reading bytes.

  Data sets of the hub and the standard library have none.
  Raises DataError if a path matches nothing.
  """
  own_path = config.own_path(split)
  paths = [(kind, own_path or path) for _, kind, path in config.entries]
  files = {}
  for kind, path in paths:
    if kind in FILES:
      fs, names = match_files(path, folders=FILES[kind])
      files |= {name: functools.partial(fs.open, name, "rb") for name in names}
  return files


def holds_records(path: str) -> bool:
  """Whether a file or glob has an ending of files of records or tables."""
  return ending(path) in (*RECORDS, *tables.ENDINGS)


def source_name(kind: str, path: str) -> str:
  """Short name of a source: the last part of its path that is not a pattern, without endings.

  The names of several paths are joined with a plus.
  """
  if kind == "stdlib":
    return kind
  of_dataset = kind == "datasets"
  parts = [split_revision(path.partition("#")[0])[0]] if of_dataset else path.split(",")
  return "+".join(dict.fromkeys(_last_part(part.strip()) or kind for part in parts))


def _last_part(path: str) -> str:
  parts = [part for part in path.split("/") if part and not set(part) & set("*?[")]
  name = parts[-1] if parts else ""
  return _without(_without(name, COMPRESSED_ENDINGS), (*RECORDS, *tables.ENDINGS, ".txt")).strip(
    ".~:"
  )


def _without(name: str, endings: Sequence[str]) -> str:
  for one in endings:
    name = name.removesuffix(one)
  return name


def _open(
  config: DataConfig, kind: str, path: str, split: str, bad_records: BadRecords
) -> Source | TokenShards:
  name = source_name(kind, path)
  if kind == "stdlib":
    return stdlib_files(split, bad_records)
  if kind == "text":
    return text_files(path, name, bad_records, config.document)
  if kind == "jsonl":
    return json_lines(path, name, config.text_key, bad_records)
  if kind == "shards":
    shards = token_shards(config, path)
    return shards if split == "train" else _held_out(shards, name, split, bad_records)
  if kind == "auto":
    return AutoFiles(path, name, bad_records, text_key=config.text_key, document=config.document)
  return HFDataset(path, config.datasets_config, name, config.text_key, bad_records)


def token_shards(config: DataConfig, folder: str) -> TokenShards:
  """A folder of them, local or behind a URL. Raises DataError."""
  return TokenShards(folder, config.cache, config.cache_gib)


def _held_out(shards: TokenShards, name: str, split: str, bad_records: BadRecords) -> Source:
  """The documents that were held out of token shards."""
  folder, remote = shards.folder, shards.held_out()
  if split == "validation" and remote is not None and remote.paths:
    return JsonLines(remote, remote.paths, name, "text", bad_records)
  if split == "validation" and remote is None and glob.glob(f"{glob.escape(folder)}/*{VALIDATION}"):
    return json_lines(f"{glob.escape(folder)}/*{VALIDATION}", name, "text", bad_records)
  raise DataError(
    f"{folder}: no {split} documents were held out when it was prepared: name some with"
    f" data.{split}_path, or set data.{split}_fraction=0 for none"
  )


def held_out_shares(config: DataConfig) -> Shares:
  """Shares of the training source that are held out for validation and for test.

  Nothing is held out for a split with a path of its own.
  """
  return Shares(
    0.0 if config.validation_path else config.validation_fraction,
    0.0 if config.test_path else config.test_fraction,
  )


def _hash_rule(low: float, high: float) -> Callable[[Document], bool]:
  """Whether a document belongs to a split with these bounds."""
  if (low, high) == (0.0, 1.0):
    return _all_documents
  return lambda document: low <= hash_position(document.text) < high


def _all_documents(document: Document) -> bool:
  return True


def files_fingerprint(config: DataConfig, components: Sequence[Component]) -> dict[str, str]:
  """What must not change before a run is resumed: the number, names and bytes of the files, and for
  the standard library the version of Python."""
  names = [os.path.basename(shard) for part in components for shard in part.source.shards]
  sizes = [size for part in components for size in _sizes(part.source)]
  fingerprint = {
    "files": f"{len(names)} ({_hash(names)})",
    "bytes of the files": f"{sum(sizes):,} ({_hash(map(str, sizes))})",
  }
  if any(kind == "stdlib" for _, kind, _ in config.entries):
    fingerprint["python"] = platform.python_version()
  return fingerprint


def _sizes(source: Source | TokenShards) -> list[int]:
  if isinstance(source, InMemorySource):  # parts of a file
    return [len(document.text.encode()) for document in source.documents]
  return [source.size(shard) for shard in range(len(source.shards))]


def _hash(texts: Iterable[str]) -> str:
  return hashlib.blake2b(chr(0).join(texts).encode(), digest_size=8).hexdigest()
