"""Text and code trees, and the Python standard library: a document a file, line or paragraph."""

import itertools
import os
import sysconfig
from collections.abc import Callable, Iterator

from gptneo_jax.data.contents import (
  ForeignFileError,
  LostFileError,
  read_pieces,
  utf8_chunks,
)
from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.files import file_size, match_files, opened

# Held out of the standard library as whole packages: files of one package resemble each other.
STDLIB_VALIDATION = ("json", "logging", "urllib")  # about 390 kB in Python 3.11
STDLIB_TEST = ("email", "tomllib")  # about 400 kB
_STDLIB_LEFT_OUT = frozenset(
  # Tests; what other people installed; tables and generated text that teach little.
  "test tests idle_test site-packages dist-packages __pycache__ encodings pydoc_data".split()
)
_SEPARATOR = b"<|endoftext|>"  # between the documents of one file, as text corpora are written


class TextFiles:
  """A tree or glob of text files.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(
    self, fs, files: list[str], name: str, bad_records: BadRecords, document: str = "file"
  ):
    self._fs, self.shards, self._name, self._bad_records = fs, files, name, bad_records
    self._document_is = document

  def size(self, shard: int) -> int:
    """Bytes of a file, 0 where that is not known."""
    return file_size(self._fs, self.shards[shard])

  def read(
    self, shard: int, start: tuple[int, int], mine: Callable[[int], bool]
  ) -> Iterator[tuple[tuple[int, int], Document]]:
    """Documents of one file from a cursor on, as JsonLines.read: one, or those between marks of the
    end of text; or its lines, or paragraphs, that are not blank. Binary files hold none."""
    path = self.shards[shard]
    with opened(self._fs, path, self._bad_records) as file:
      if file is None:
        return
      plain, chunks = utf8_chunks(file, path, start[1])
      try:
        for cursor, piece in self._pieces(plain, chunks, start, mine):
          document = self._document(piece, path, cursor[0])
          if document is not None:
            yield cursor, document
      except ForeignFileError as error:  # a tree may hold pictures: nothing is wrong with that
        self._bad_records.pass_over(f"{path}:1", str(error).partition(":")[0])
      except LostFileError as error:
        self._bad_records.add_file(f"{path}: {self._named} {error.piece}", str(error))

  @property
  def _named(self) -> str:
    return "document" if self._document_is == "file" else self._document_is

  def _pieces(self, plain, chunks, start, mine) -> Iterator[tuple[tuple[int, int], bytes]]:
    if self._document_is == "file":
      return read_pieces(plain, chunks, _SEPARATOR, start, mine)
    if self._document_is == "line":
      return read_pieces(plain, chunks, b"\n", start, mine)
    return _paragraphs(plain, chunks, start, mine)

  def _document(self, piece: bytes, path: str, number: int) -> Document | None:
    """The document number `number` of a file, from 1; None where there is no text."""
    if self._document_is == "line":
      location = f"{path}:{number}"
    else:
      location = f"{path}:1" if number == 1 else f"{path}: {self._named} {number}, line 1"
    try:
      text = piece.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
      if self._document_is != "line":
        line = piece.count(b"\n", 0, error.start) + 1
        location = f"{location.removesuffix('1')}{line}"
      self._bad_records.add(location, "invalid UTF-8", f"byte {error.start}")
      return None
    if self._document_is != "file":
      text = text.removesuffix("\r")
      return Document(text, self._name, location) if text.strip() else None
    if number > 1:  # the line end after a mark on a line of its own is the mark's
      text = text.removeprefix("\r").removeprefix("\n")
    return Document(text, self._name, location) if text else None


def _paragraphs(
  plain: bool, chunks: Iterator[bytes], start: tuple[int, int], mine: Callable[[int], bool]
) -> Iterator[tuple[tuple[int, int], bytes]]:
  """What stands between blank lines, as read_pieces gives what stands between separators."""
  record, offset = start
  number, lines, end = record if plain else 0, [], offset
  read = read_pieces(plain, chunks, b"\n", (0, offset), lambda _: True)
  for cursor, line in itertools.chain(read, [(None, b"")]):
    end = cursor[1] if cursor else end
    if line.strip():
      lines.append(line)
    elif lines:
      number += 1
      if number > record and mine(number - 1):
        yield (number, end), b"\n".join(lines)
      lines = []


def text_files(path: str, name: str, bad_records: BadRecords, document: str = "file") -> TextFiles:
  """The files of a folder or glob; DataError when there is none."""
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
