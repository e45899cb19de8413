"""How much data a run has: documents, tokens and steps where counting is quick, else file sizes."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, Document
from gptneo_jax.data.file_formats import COMPRESSED_ENDINGS
from gptneo_jax.data.files import file_size, match_files
from gptneo_jax.data.remote_folder import is_url
from gptneo_jax.data.shard_manifest import VALIDATION
from gptneo_jax.data.sources import (
  FILES,
  Component,
  has_split,
  held_out_shares,
  open_components,
  token_shards,
)
from gptneo_jax.data.splits import InMemorySource, hash_position
from gptneo_jax.data.tokenizer import DocumentEncoder

# Up to this size files are read and counted, which takes a second or two. Compressed files count
# four times.
_COUNTED_BYTES = 30_000_000
_SAMPLE_BYTES = 200_000  # of text that is encoded to estimate the number of tokens
_COMPRESSED = (*COMPRESSED_ENDINGS, ".parquet")


class _Amount(NamedTuple):
  documents: int
  bytes: int

  def __str__(self) -> str:
    return f"{self.documents:,} document{'s'[: self.documents != 1]}, {_size(self.bytes)}"


def amount_of_data(config: DataConfig, tokenizer, tokens_per_step: int) -> str:
  """One line: documents, bytes, estimated tokens and steps of an epoch; what is held out.

  Large files and data sets of the hub are not counted. Raises DataError if data cannot be read.
  """
  files, prepared = _files(config, "train"), _prepared(config)
  if prepared is not None:
    documents, size, tokens = prepared
    steps = f"{tokens / tokens_per_step:,.1f} steps an epoch"
    train = f"training data: {_Amount(documents, size)}, {tokens:,} tokens, {steps}"
  elif files is None:
    train = "training data: not counted"
  elif _effective_bytes(files) > _COUNTED_BYTES:
    train = f"training data: {_files_and_size(files)}, not counted"
  else:
    documents = _documents(_open(config, "train"))
    amount, tokens = _estimate(documents, tokenizer)
    steps = f"{tokens / tokens_per_step:,.1f} steps an epoch"
    train = f"training data: {amount}, about {_rounded(tokens)} tokens, {steps}"
  return f"{train}; {_validation(config)}"


def tokens_of_epoch(config: DataConfig, tokenizer) -> float:
  """Tokens of a pass over the training data, with the end of text that each document gets.

  Files of up to 30 MB are encoded, so that the count is exact. More than that, and a data set of
  the hub, is read once too, but only the first 200 kB of text are encoded, as a measure for the
  others. Raises DataError if data cannot be read.
  """
  if prepared := _prepared(config):
    return float(prepared[2])
  files = _files(config, "train")
  documents = _documents(_open(config, "train"))
  if files is None or _effective_bytes(files) > _COUNTED_BYTES:
    return _estimate(documents, tokenizer)[1]
  encoder, tokens = DocumentEncoder(tokenizer), 0
  while sample := _sample(documents)[0]:
    tokens += _tokens(encoder, sample)
  return float(tokens)


def _prepared(config: DataConfig) -> tuple[int, int, int] | None:
  """Documents, bytes and tokens of token shards; None if the data are of another kind."""
  if {kind for _, kind, _ in config.entries} != {"shards"}:
    return None
  manifests = [m for _, _, path in config.entries for m in token_shards(config, path).manifests]
  counts = np.array([(m.documents, m.text_bytes, m.tokens) for m in manifests])
  documents, size, tokens = counts.sum(0).tolist()
  return documents, size, tokens


def _estimate(documents: Iterator[Document], tokenizer) -> tuple[_Amount, float]:
  """What there is, and about how many tokens that are, by those of the first documents."""
  sample, rest = _sample(documents)
  sampled = _amount(sample)
  others = _amount(rest)
  amount = _Amount(sampled.documents + others.documents, sampled.bytes + others.bytes)
  ids = _tokens(DocumentEncoder(tokenizer), sample) - sampled.documents
  return amount, ids * amount.bytes / max(sampled.bytes, 1) + amount.documents


def _tokens(encoder: DocumentEncoder, documents: list[Document]) -> int:
  ids = encoder.encode([document.text for document in documents])
  return sum(map(len, ids)) + len(documents)


def _validation(config: DataConfig) -> str:
  if not has_split(config, "validation"):
    return "no validation: trains on everything (data.validation_fraction is 0)"
  files = _files(config, "validation")
  if files is None or _effective_bytes(files) > _COUNTED_BYTES:
    size = f"{_files_and_size(files)} of " if files and config.validation_path else ""
    return f"validation: {size}{config.validation_path or 'held out by hash'}, not counted"
  components = _open(config, "validation")
  documents = list(_documents(components))
  low, high = held_out_shares(config).bounds("validation")
  by_hash = not config.validation_path and all(kind != "stdlib" for _, kind, _ in config.entries)
  how = ""
  if any(isinstance(component.source, InMemorySource) for component in components):
    how = ", the end of the only document of a source"
  elif by_hash and documents and not low <= hash_position(documents[0].text) < high:
    how = f", those of the smallest hashes: data.validation_fraction {high - low:g} gives none"
  return f"validation: {_amount(documents)}{how}"


def _open(config: DataConfig, split: str) -> list[Component]:
  return open_components(config, split, BadRecords(config.on_bad_record, quiet=True))


def _documents(components: list[Component]) -> Iterator[Document]:
  return itertools.chain.from_iterable(component.documents() for component in components)


def _amount(documents: Iterable[Document]) -> _Amount:
  count = size = 0
  for document in documents:
    count += 1
    size += len(document.text.encode())
  return _Amount(count, size)


def _sample(documents: Iterator[Document]) -> tuple[list[Document], Iterator[Document]]:
  """The first documents, about _SAMPLE_BYTES of text, and the others."""
  sample, size = [], 0
  for document in documents:
    sample.append(document)
    size += len(document.text)
    if size >= _SAMPLE_BYTES:
      break
  return sample, documents


def _files(config: DataConfig, split: str) -> dict[str, int] | None:
  """Bytes of each file that a split is read from, except the standard library's; None for data sets
  of the hub and for shards behind a URL."""
  sizes = {}
  for _, kind, path in config.entries:
    if kind == "datasets" or (kind == "shards" and split == "train"):
      return None
    if kind == "shards" and not config.own_path(split) and is_url(path):
      return None
    if kind == "shards":
      path = config.own_path(split) or f"{glob.escape(path)}/*{VALIDATION}"
      kind = "auto"
    if kind in FILES:
      fs, names = match_files(config.own_path(split) or path, folders=FILES[kind])
      sizes |= {name: file_size(fs, name) for name in names}
  return sizes


def _effective_bytes(files: dict[str, int]) -> int:
  return sum(size * (4 if name.endswith(_COMPRESSED) else 1) for name, size in files.items())


def _files_and_size(files: dict[str, int]) -> str:
  compressed = " compressed" if any(name.endswith(_COMPRESSED) for name in files) else ""
  return f"{len(files):,} file{'s'[: len(files) != 1]}, {_size(sum(files.values()))}{compressed}"


def _size(size: int) -> str:
  for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
    if size >= factor:
      return f"{size / factor:,.1f} {unit}"
  return f"{size} bytes"


def _rounded(tokens: float) -> str:
  """To three digits, since it is an estimate."""
  return f"{float(f'{tokens:.3g}'):,.0f}"
