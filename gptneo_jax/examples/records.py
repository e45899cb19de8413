"""Records of labelled files: rows of a table, JSON objects, sentences of tokens, questions."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from gptneo_jax.data import BadRecords, DataError, file_formats, files, hf_datasets, jsonl, tables
from gptneo_jax.data.documents import every_record, warn_once
from gptneo_jax.examples import conll, squad

STDIN = "-"
_JSON = (".json", ".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Record:
  """One record.

  Attributes:
    fields: its values by the file's names for them; '0', '1', … in a table without a header.
    location: 'file:line', for messages.
    file: the file, or the shard of a data set.
  """

  fields: dict[str, Any]
  location: str
  file: str = ""


def read_records(
  path: str,
  *,
  header: bool = True,
  source: str = "auto",
  config_name: str = "",
  bad_records: BadRecords | None = None,
) -> list[Record]:
  """All records of a path, in the order of its files.

  Files are JSON, JSON lines, parquet, CSV and TSV by their endings; token classification's columns
  of words and tags by theirs (.conll, .iob2, …) or their content; of any other text JSON if it
  begins as such, else each line is a record with the one field `text`.

  Args:
    path: files as data.path has them, globs and several with commas; '-' is standard input; with
      the source 'datasets' NAME_OR_PATH[#SPLIT].
    header: whether the first row of a table names its columns.
    source: as data.source; all but 'datasets' are files of any kind.
    config_name: configuration of a data set.
    bad_records: what to do about those that cannot be read; None stops at the first one.

  Raises:
    DataError: naming file and line.
  """
  bad_records = bad_records or BadRecords("stop")
  if source == "datasets":
    return list(_of_dataset(path, config_name, bad_records))
  if path == STDIN:
    data = io.BytesIO(sys.stdin.buffer.read())
    return list(_records(data, "standard input", header, bad_records))
  found: list[Record] = []
  fs, names = files.match_files(path, folders=False)
  for name in names:
    with files.opened(fs, name, bad_records) as file:
      if file is not None:
        found += _records(file, name, header, bad_records)
  return found


def _of_dataset(path: str, config_name: str, bad_records: BadRecords) -> Iterator[Record]:
  hf_datasets.check_dataset(path)
  data = hf_datasets.HFDataset(path, config_name, "", "", bad_records)
  for shard, name in enumerate(data.shards):
    for number, fields in data.records(shard, 0, every_record):
      yield Record(data.with_label_names(fields), f"{name}:{number + 1}", name)


def _records(file: BinaryIO, name: str, header: bool, bad_records: BadRecords) -> Iterator[Record]:
  for location, fields in _located(file, name, header, bad_records):
    if not isinstance(fields, dict):
      bad_records.add(location, "not an object with fields", f"it is a {type(fields).__name__}")
    elif not _is_text(fields):
      bad_records.add(location, "invalid UTF-8 or a lone surrogate in the text")
    else:
      yield Record(fields, location, name)


def _located(
  file: BinaryIO, name: str, header: bool, bad_records: BadRecords
) -> Iterator[tuple[str, Any]]:
  """(location, record) of each."""
  if file_formats.is_parquet(file_formats.first_bytes(file)):
    with_label_names = hf_datasets.label_names_of(file)
    for _, location, row in jsonl.read_objects(file, name, bad_records):
      yield location, with_label_names(row)
    return
  data = _utf8(file, name, bad_records)
  ending = file_formats.ending(name)
  if ending in conll.ENDINGS or (ending not in (*_JSON, ".csv") and conll.looks_like(data)):
    yield from conll.sentences(data, name, bad_records)
  elif ending in tables.ENDINGS:
    for _, location, row in tables.read_rows(io.BytesIO(data), name, bad_records, header=header):
      yield location, row
  elif ending in _JSON or data.lstrip()[:1] in (b"{", b"["):
    yield from _json(data, name, bad_records)
  else:
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
      if line.strip():
        yield f"{name}:{number}", {"text": line.removesuffix("\r")}


def _utf8(file: BinaryIO, name: str, bad_records: BadRecords) -> bytes:
  """The content of a file without byte order mark; of one in Windows' code page 1252, as UTF-8.

  A file of the code page has hardly any valid sequence of UTF-8, a damaged one of UTF-8 has many:
  that is left as it is, and its bad lines are named where they are read.
  """
  parts: list[bytes] = []
  try:
    parts += file_formats.utf8_chunks(file, name, 0)[1]
  except file_formats.UnreadableFileError as error:
    bad_records.add_file(name, str(error))
  data = b"".join(parts).removeprefix(b"\xef\xbb\xbf")
  with contextlib.suppress(UnicodeDecodeError):
    data.decode()
    return data
  beyond = re.sub("[\0-\x7f]", "", data.decode("utf-8", "surrogateescape"))
  valid = re.sub("[\ud800-\udfff]", "", beyond)
  if 2 * len(valid) >= len(beyond):
    return data
  try:
    text = data.decode("cp1252")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise DataError(f"{name}:{line}: neither UTF-8 nor Windows' code page 1252") from None
  warn_once(f"{name} is not UTF-8: read as Windows' code page 1252")
  return text.encode()


def _json(data: bytes, name: str, bad_records: BadRecords) -> Iterator[tuple[str, Any]]:
  whole = _whole_object(data, name)
  if whole is None:
    for _, location, value in jsonl.read_objects(io.BytesIO(data), name, bad_records):
      yield location, value
    return
  elements = whole.get("data")
  if squad.holds_questions(elements):
    yield from squad.questions(elements, name, bad_records)
  elif isinstance(elements, list) and elements and isinstance(elements[0], dict):
    for number, element in enumerate(elements, 1):
      yield f"{name}: record {number}", element
  else:
    yield f"{name}:1", whole


def _whole_object(data: bytes, name: str) -> dict[str, Any] | None:
  """The JSON object that a file is as a whole; None if it is an array or lines."""
  first, _, rest = data.lstrip().partition(b"\n")
  if not first.startswith(b"{"):
    return None
  if rest and not rest.isspace():
    with contextlib.suppress(ValueError, RecursionError):
      json.loads(first)
      return None  # the first of several lines
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    if first.strip() == b"{" and isinstance(error, json.JSONDecodeError):
      raise DataError(f"{name}:{error.lineno}: invalid JSON ({error.msg})") from None
    return None  # the bad line is named where lines are read


def _is_text(value: Any) -> bool:
  """Whether no string in it has a lone surrogate, which no tokenizer takes.

  JSON may spell one, and bytes that are not UTF-8 became some.
  """
  if isinstance(value, str):
    if not value.isascii():
      try:
        value.encode()
      except UnicodeEncodeError:
        return False
    return True
  if isinstance(value, dict):
    return all(_is_text(inner) for inner in value.values())
  return not isinstance(value, list) or all(map(_is_text, value))
