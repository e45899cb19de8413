"""Tables of text: CSV and TSV. A record is a row, whose fields have the names of the first row.

CSV is as in RFC 4180; semicolons or tabs take the place of commas where the first line has none.
TSV is written in two ways: with the quotes of CSV, and without any, so that a quote is a character
like others. A file is of the first kind if all its quotes are as CSV has them.
"""

import codecs
import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gptneo_jax.data.documents import (
  BadRecords,
  Cursor,
  DataError,
  Document,
  Wanted,
  every_record,
)
from gptneo_jax.data.file_formats import (
  UnreadableFileError,
  ending,
  split_chunks,
  utf8_chunks,
)
from gptneo_jax.data.files import file_size, opened
from gptneo_jax.data.jsonl import document_of

ENDINGS = (".csv", ".tsv", ".tab")
_LONGEST = 2**31 - 1  # characters of a field: what the C long of every platform holds
_QUOTED = re.compile(
  rb'(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:\t(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+))*+\r?'
)


class Tables:
  """Rows of files, each of which may be compressed in its own way; as JsonLines.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(self, fs, files: list[str], name: str, text_key: str, bad_records: BadRecords):
    """text_key: the column that holds the text; a number means a table without header, whose
    columns count from 0."""
    self._fs, self.shards = fs, files
    self._name, self._text_key, self._bad_records = name, text_key, bad_records

  def size(self, shard: int) -> int:
    """Bytes of a file, 0 if not known."""
    return file_size(self._fs, self.shards[shard])

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """Documents of one file from a cursor (row, 0) on, as JsonLines.read."""
    path, key, bad_records = self.shards[shard], self._text_key, self._bad_records
    with opened(self._fs, path, bad_records) as file:
      if file is None:
        return
      rows = read_rows(file, path, bad_records, header=not key.isdecimal(), wanted=wanted)
      for number, location, row in rows:
        if number >= start[0]:
          document = document_of(row, key, self._name, location, bad_records)
          if document is not None:
            yield (number + 1, 0), document


def read_rows(
  file, path: str, bad_records: BadRecords, *, header: bool = True, wanted: Wanted = every_record
) -> Iterator[tuple[int, str, dict[str, str]]]:
  """(number, location, row) of a table, from its beginning.

  file: open for reading bytes, seekable. path: its name in messages; the ending tells TSV.
  header: whether the first row names the columns; else their names are '0', '1', …
  wanted: says of a row's number whether to yield it. Blank lines are no rows.
  Raises DataError for a row with more or fewer fields than the first, or damaged quotes.
  """
  try:
    delimiter, quoted = _dialect(file, path)
    lines = _lines(file, path)
    rows = _quoted_rows(lines, delimiter) if quoted else _plain_rows(lines, delimiter)
    first = next(rows, None)
    if first is None:
      return
    names = _names(first, path, header)
    for number, row in enumerate(rows if header else itertools.chain([first], rows)):
      if not wanted(number):
        continue
      if problem := _problem(row, len(names)):
        bad_records.add(f"{path}:{row.line}", problem)
      else:
        yield number, f"{path}:{row.line}", dict(zip(names, row.values))
  except _Unclosed as error:
    bad_records.add_file(f"{path}:{error.args[0]}", "a quote opens here that is never closed")
  except UnreadableFileError as error:
    bad_records.add_file(path, str(error))


class _Row(NamedTuple):
  line: int  # where it begins
  values: list[str]
  damage: str = ""


class _Unclosed(Exception):
  """The argument is the line of the row whose quote is open at the end of the file."""


def _lines(file, path: str) -> Iterator[bytes]:
  """Its lines without their ends and without a byte order mark."""
  file.seek(0)
  lines = split_chunks(utf8_chunks(file, path, 0)[1], b"\n")
  first = next(lines, None)
  if first is None:
    return iter(())
  return itertools.chain([first.removeprefix(codecs.BOM_UTF8)], lines)


def _dialect(file, path: str) -> tuple[str, bool]:
  """(delimiter, whether fields may be quoted) of a file."""
  if ending(path) in (".tsv", ".tab"):
    return "\t", _is_quoted(_lines(file, path))
  first = re.sub(rb'"[^"]*"', b"", next(_lines(file, path), b""))
  return next((mark for mark in (",", "\t", ";") if mark.encode() in first), ","), True


def _is_quoted(lines: Iterable[bytes]) -> bool:
  """Whether a table with tabs has quotes, and all are CSV's: around a field, doubled within."""
  row, found = [], False
  for line in lines:
    if b'"' not in line and not row:
      continue
    row.append(line)
    if line.count(b'"') % 2 == (len(row) > 1):  # of the row an even number: no quote is open
      found = True
      if not _QUOTED.fullmatch(b"\n".join(row)):
        return False
      row = []
  return found and not row


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
  """The lines with their ends; what is not UTF-8 in them becomes lone surrogates."""
  for line in lines:
    yield line.decode("utf-8", "surrogateescape") + "\n"


def _plain_rows(lines: Iterable[bytes], delimiter: str) -> Iterator[_Row]:
  for number, line in enumerate(_decoded(lines), 1):
    line = line.removesuffix("\n").removesuffix("\r")
    if line:
      yield _Row(number, line.split(delimiter))


def _quoted_rows(lines: Iterable[bytes], delimiter: str) -> Iterator[_Row]:
  csv.field_size_limit(_LONGEST)  # 131,072 otherwise, less than many a document
  reader = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
  while True:
    line = reader.line_num + 1
    try:
      values = next(reader, None)
    except csv.Error as error:
      if "unexpected end of data" in str(error):
        raise _Unclosed(line) from None
      outside = "new-line character" in str(error)
      yield _Row(line, [], "a carriage return outside quotes" if outside else str(error))
      continue
    if values is None:
      return
    if values:
      yield _Row(line, values)


def _names(row: _Row, path: str, header: bool) -> list[str]:
  """Of the columns, by the first row."""
  if problem := _problem(row, len(row.values)):
    raise DataError(f"{path}:{row.line}: {problem}")
  if not header:
    return list(map(str, range(len(row.values))))
  names = [value.strip() for value in row.values]
  for name in names:
    if name and names.count(name) > 1:
      raise DataError(f"{path}:{row.line}: two columns are called {name!r}")
  return names


def _problem(row: _Row, width: int) -> str:
  """What is wrong with a row, '' if nothing."""
  if row.damage:
    return f"damaged row: {row.damage}"
  if len(row.values) != width:
    return f"{len(row.values)} field{'s'[: len(row.values) != 1]} in a table of {width}"
  for value in row.values:
    if not value.isascii():
      try:
        value.encode()
      except UnicodeEncodeError:
        return "invalid UTF-8"
  return ""
