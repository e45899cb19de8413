"""Folders of text or code, and the Python standard library; a document is a file, line or
paragraph."""

import itertools
import os
import sysconfig
from collections.abc import Iterator

from gptneo_jax.data.documents import BadRecords, Cursor, DataError, Document, Wanted
from gptneo_jax.data.file_formats import (
  NotTextError,
  UnreadableFileError,
  read_records,
  utf8_chunks,
)
from gptneo_jax.data.files import file_size, match_files, opened

# Packages of the standard library that are held out: files of one package resemble each other.
STDLIB_VALIDATION = ("json", "logging", "urllib")  # about 390 kB in Python 3.11
STDLIB_TEST = ("email", "tomllib")  # about 400 kB
_STDLIB_LEFT_OUT = frozenset(
  # Tests; installed packages; tables and generated text, which teach little.
  "test tests idle_test site-packages dist-packages __pycache__ encodings pydoc_data".split()
)
_SEPARATOR = b"<|endoftext|>"  # between the documents of one file, as in many text corpora


class TextFiles:
  """A folder or glob of text files.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(
    self, fs, files: list[str], name: str, bad_records: BadRecords, document: str = "file"
  ):
    self._fs, self.shards, self._name, self._bad_records = fs, files, name, bad_records
    self._unit = document

  def size(self, shard: int) -> int:
    """Bytes of a file, 0 if not known."""
    return file_size(self._fs, self.shards[shard])

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """Documents of one file from a cursor on, as JsonLines.read: the texts between `<|endoftext|>`,
    or the lines or paragraphs that are not blank. Binary files hold none."""
    path = self.shards[shard]
    with opened(self._fs, path, self._bad_records) as file:
      if file is None:
        return
      plain, chunks = utf8_chunks(file, path, start[1])
      try:
        for cursor, record in self._records(plain, chunks, start, wanted):
          document = self._document(record, path, cursor[0])
          if document is not None:
            yield cursor, document
      except NotTextError as error:  # a folder may hold pictures: nothing is wrong with that
        self._bad_records.skip(f"{path}:1", str(error).partition(":")[0])
      except UnreadableFileError as error:
        self._bad_records.add_file(f"{path}: {self._noun} {error.record}", str(error))

  @property
  def _noun(self) -> str:
    """What messages call a document."""
    return "document" if self._unit == "file" else self._unit

  def _records(
    self, plain: bool, chunks: Iterator[bytes], start: Cursor, wanted: Wanted
  ) -> Iterator[tuple[Cursor, bytes]]:
    if self._unit == "file":
      return read_records(plain, chunks, _SEPARATOR, start, wanted)
    if self._unit == "line":
      return read_records(plain, chunks, b"\n", start, wanted)
    return _paragraphs(plain, chunks, start, wanted)

  def _document(self, record: bytes, path: str, number: int) -> Document | None:
    """The document number `number` of a file, from 1; None if it has no text."""
    if self._unit == "line":
      location = f"{path}:{number}"
    else:
      location = f"{path}:1" if number == 1 else f"{path}: {self._noun} {number}, line 1"
    try:
      text = record.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
      if self._unit != "line":
        line = record.count(b"\n", 0, error.start) + 1
        location = f"{location.removesuffix('1')}{line}"
      self._bad_records.add(location, "invalid UTF-8", f"byte {error.start}")
      return None
    if self._unit != "file":
      text = text.removesuffix("\r")
      return Document(text, self._name, location) if text.strip() else None
    if number > 1:  # after a separator on a line of its own, the line end is not the document's
      text = text.removeprefix("\r").removeprefix("\n")
    return Document(text, self._name, location) if text else None


def _paragraphs(
  plain: bool, chunks: Iterator[bytes], start: Cursor, wanted: Wanted
) -> Iterator[tuple[Cursor, bytes]]:
  """Lines between blank lines, joined; arguments and cursors as of read_records."""
  before, offset = start
  number, lines, end = before if plain else 0, [], offset
  read = read_records(plain, chunks, b"\n", (0, offset), lambda _: True)
  for cursor, line in itertools.chain(read, [(None, b"")]):
    end = cursor[1] if cursor else end
    if line.strip():
      lines.append(line)
    elif lines:
      number += 1
      if number > before and wanted(number - 1):
        yield (number, end), b"\n".join(lines)
      lines = []


def text_files(path: str, name: str, bad_records: BadRecords, document: str = "file") -> TextFiles:
  """The files of a folder or glob; DataError if there is none."""
  fs, files = match_files(path, folders=True)
  return TextFiles(fs, files, name, bad_records, document)


def stdlib_files(split: str, bad_records: BadRecords) -> TextFiles:
  """The Python standard library's own source, of one split ('train', 'validation', 'test')."""
  import fsspec

  root = sysconfig.get_paths()["stdlib"]
  files = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _STDLIB_LEFT_OUT]
    files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
  files = sorted(file for file in files if _stdlib_split(os.path.relpath(file, root)) == split)
  if not files:
    raise DataError(f"{root}: this Python has no source files of its standard library")
  return TextFiles(fsspec.filesystem("file"), files, "stdlib", bad_records)


def _stdlib_split(below: str) -> str:
  package = below.split(os.sep)[0]
  if package in STDLIB_VALIDATION:
    return "validation"
  return "test" if package in STDLIB_TEST else "train"
