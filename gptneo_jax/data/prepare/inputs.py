"""What is to be prepared: settings, files, and who reads which of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gptneo_jax.data import id_files
from gptneo_jax.data.auto_files import AutoFiles
from gptneo_jax.data.documents import BadRecords, Document, Wanted
from gptneo_jax.data.file_formats import ending
from gptneo_jax.data.files import match_files
from gptneo_jax.data.prepare import cleaning
from gptneo_jax.data.sources import source_name


@dataclasses.dataclass(frozen=True)
class Settings:
  """On what the bytes of shards depend, beside the files themselves.

  path: files and folders, as data.path of the source 'auto'. tokenizer: as data.tokenizer. records:
  of a file that make a shard. text_key, document, on_bad_record, validation_fraction: as in
  DataConfig. dedup: one of duplicates.KINDS. clean: one of cleaning.KINDS.
  """

  path: str
  tokenizer: str
  records: int = 20_000
  text_key: str = "text"
  document: str = "file"
  on_bad_record: str = "stop"
  validation_fraction: float = 0.01
  dedup: str = "none"
  clean: str = "none"


class Part(NamedTuple):
  """Part number `index` of `count` of the work; a file is read by as few parts as possible."""

  index: int
  count: int

  def share(self, file: int, files: int) -> tuple[int, int]:
    """(first, step) of the file's units that are this part's; step is 0 if none is."""
    if self.count <= files:
      return (0, 1) if file % self.count == self.index else (0, 0)
    members = range(file, self.count, files)
    return (members.index(self.index), len(members)) if self.index in members else (0, 0)


class Inputs:
  """The files. names: number and name of each; what is made of one is called after it."""

  def __init__(self, settings: Settings):
    """Raises DataError if there are none."""
    self.bad_records = BadRecords(settings.on_bad_record)
    self._clean = cleaning.cleaner(settings.clean)
    self._fs, _ = match_files(settings.path, folders=True)
    self._source = AutoFiles(
      settings.path, source_name("auto", settings.path), self.bad_records,
      text_key=settings.text_key, document=settings.document,
    )  # fmt: skip
    self._paths = self._source.shards
    self.names = [f"{n:04d}-{os.path.basename(path)}" for n, path in enumerate(self._paths)]
    self.sizes = [self._source.size(n) for n in range(len(self._paths))]

  def read(
    self, file: int, wanted: Wanted, end_of_text: int
  ) -> Iterator[tuple[int, Document | np.ndarray]]:
    """(number past it, document) of the records of a file that are wanted; ids of a file of ids.

    Texts have been cleaned; one of which nothing is left is no document.
    """
    path = self._paths[file]
    if ending(path) in id_files.ENDINGS:
      yield from id_files.read_ids(self._fs, path, wanted, self.bad_records, end_of_text)
      return
    for (past, _), document in self._source.read(file, (0, 0), wanted):
      if self._clean:
        document = dataclasses.replace(document, text=self._clean(document.text))
      if document.text:
        yield past, document
