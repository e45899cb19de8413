"""Small data files in every compression, and what is read from them."""

import bz2
import functools
import gzip
import json
import lzma

import zstandard

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.evaluation import evaluation_documents

TEXTS = ["first", "três\nlinhas", "日本語 🙂", "x" * 140_000, "last"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
COMPRESSIONS = {
  "gzip": gzip.compress,
  "zstd": zstandard.ZstdCompressor().compress,
  "xz": functools.partial(lzma.compress, preset=0),
  "bzip2": functools.partial(bz2.compress, compresslevel=1),
  "two members": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
  "skippable frame": lambda data: (
    b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.ZstdCompressor().compress(data)
  ),
  "plain": lambda data: data,
}


def every_record(record):
  return True


def data_config(path, kind="jsonl", **options):
  return DataConfig(source=kind, path=str(path), validation_fraction=0, **options)


def texts_of(path, kind="jsonl", **options):
  return [
    document.text for document in evaluation_documents(data_config(path, kind, **options), "train")
  ]


def read_shard(source, shard=0, start=(0, 0), wanted=every_record):
  return list(source.read(shard, start, wanted))


def assert_continues_from_every_cursor(source):
  documents = read_shard(source)
  for number, (cursor, _) in enumerate(documents):
    assert read_shard(source, start=cursor) == documents[number + 1 :]
  odd = read_shard(source, wanted=lambda record: record % 2 == 1)
  assert [document for _, document in odd] == [document for _, document in documents[1::2]]
