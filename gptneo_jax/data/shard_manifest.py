"""NAME.json of a token shard: what it was made of, how much it holds, and its checksums."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from typing import Any

import numpy as np

from gptneo_jax.data.documents import DataError
from gptneo_jax.errors import first_line

BLOCK = 1 << 20  # bytes of NAME.bin that have a checksum of their own
FORMAT = "gptneo_jax token shard 1"
SETTINGS = "prepare.json"  # of the folder: what its shards were made with
TOKENIZER = "tokenizer"  # folder in it
PART = ".part"  # ending of files that are being written
VALIDATION = ".validation.jsonl.zst"
AGAIN = "run gptneo_jax.prepare again, which makes it anew"


@dataclasses.dataclass(frozen=True)
class Manifest:
  """NAME.json.

  source: number and name of the file that the documents are of. first, end: its records, from 0;
  the last shard of a file ends with it, and says so. dtype: 'uint16' or 'uint32'. text_bytes: of
  the documents in UTF-8. tokenizer: DocumentEncoder.fingerprint. subsets: documents, tokens and
  bytes of each. held_out: how many documents are for validation. blocks: CRC-32 of each BLOCK of
  NAME.bin; checksums: those of the other files, by their endings.
  """

  source: str
  first: int
  end: int
  last: bool
  dtype: str
  documents: int
  tokens: int
  text_bytes: int
  end_of_text: int
  tokenizer: str
  subsets: dict[str, list[int]]
  held_out: int
  blocks: list[int]
  checksums: dict[str, int]

  @classmethod
  def read(cls, path: pathlib.Path) -> Manifest:
    """Raises DataError for what is not one."""
    try:
      content = path.read_bytes()
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
    return parse(content, path)

  def write(self, path: pathlib.Path) -> None:
    content = dataclasses.asdict(self)
    whole = {"format": FORMAT, **content, "checksum": checksum(content)}
    write_aside(path, json.dumps(whole).encode())

  def check(self) -> None:
    """Raises ValueError for fields that cannot be."""
    for field in dataclasses.fields(self):
      value, kind = getattr(self, field.name), field.type.partition("[")[0]
      if type(value).__name__ != kind or (kind == "int" and value < 0):
        raise ValueError(f"{field.name} is {value!r:.80}")
    if self.dtype not in ("uint16", "uint32"):
      raise ValueError(f"dtype is {self.dtype!r:.80}")
    sums = [*self.blocks, *self.checksums.values()]
    if len(self.blocks) != -(-self.bytes // BLOCK) or not all(type(x) is int for x in sums):
      raise ValueError("checksums are missing")

  @property
  def bytes(self) -> int:
    """Of NAME.bin."""
    return self.tokens * np.dtype(self.dtype).itemsize


def parse(text: bytes, path: pathlib.Path | str) -> Manifest:
  """The content of a manifest; path: in messages. Raises DataError for what is not one."""
  try:
    content = json.loads(text.decode())
    if content.pop("format") != FORMAT:
      raise ValueError(f"its format is not '{FORMAT}'")
    if content.pop("checksum") != checksum(content):
      raise ValueError("its checksum differs")
    manifest = Manifest(**content)
    manifest.check()
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise DataError(
      f"{path}: not the manifest of a token shard: {first_line(error)}; {AGAIN}"
    ) from None
  return manifest


def checksum(content: dict[str, Any]) -> int:
  """Of the fields of a manifest."""
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_aside(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that is there whole or not at all."""
  aside = path.with_name(f"{path.name}.{os.getpid()}{PART}")
  with open(aside, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(aside, path)
