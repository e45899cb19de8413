"""JSON lines as in the Pile, JSON arrays and parquet: a record is a line, an element or a row."""

import codecs
import itertools
import json
from collections.abc import Iterator, Sequence

from gptneo_jax.data.documents import (
  EMPTY_TEXT,
  BadRecords,
  Cursor,
  Document,
  Wanted,
  every_record,
)
from gptneo_jax.data.file_formats import (
  UnreadableFileError,
  first_bytes,
  is_parquet,
  read_records,
  utf8_chunks,
)
from gptneo_jax.data.files import file_size, match_files, opened
from gptneo_jax.data.parquet import read_rows

_SPACE = " \t\r\n"
_NO_TEXT = "no text: field '{}' is missing or not a string"


class JsonLines:
  """Records of files, each of which may be compressed in its own way.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(self, fs, files: list[str], name: str, text_key: str, bad_records: BadRecords):
    self._fs, self.shards = fs, files
    self._name, self._text_key, self._bad_records = name, text_key, bad_records

  def size(self, shard: int) -> int:
    """Bytes of a file, 0 if not known."""
    return file_size(self._fs, self.shards[shard])

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """Documents of one file from a cursor on.

    Args:
      shard: number of the file.
      start: cursor; its byte offset is used in plain JSON lines.
      wanted: says of a record's number whether to yield it; the others are not even parsed.

    Yields:
      (cursor past the record, document).

    Raises:
      DataError: naming file and line of a bad record.
    """
    path = self.shards[shard]
    with opened(self._fs, path, self._bad_records) as file:
      if file is None:
        return
      columns = (self._text_key, *_SUBSET_FIELDS)
      records = read_objects(
        file, path, self._bad_records, columns=columns, start=start, wanted=wanted
      )
      for cursor, location, record in records:
        document = document_of(record, self._text_key, self._name, location, self._bad_records)
        if document is not None:
          yield cursor, document


def json_lines(path: str, name: str, text_key: str, bad_records: BadRecords) -> JsonLines:
  """The files of a glob; DataError if there is none."""
  fs, files = match_files(path, folders=False)
  return JsonLines(fs, files, name, text_key, bad_records)


def read_objects(
  file,
  path: str,
  bad_records: BadRecords,
  *,
  columns: Sequence[str] = (),
  start: Cursor = (0, 0),
  wanted: Wanted = every_record,
) -> Iterator[tuple[Cursor, str, object]]:
  """(cursor past it, location, value) of each record of JSON lines, a JSON array or parquet.

  file: open for reading bytes. path: its name in messages. columns: of parquet, see `read_rows`.
  start, wanted: as JsonLines.read.
  """
  if is_parquet(first_bytes(file)):
    yield from _counted(read_rows(file, columns, start[0], wanted), path, "row", bad_records)
    return
  plain, chunks = utf8_chunks(file, path, start[1])
  try:
    first = _beginning(chunks)
  except UnreadableFileError as error:
    bad_records.add_file(f"{path}:1", str(error))
    return
  chunks = itertools.chain([first], chunks)
  if start[1] == 0 and first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
    yield from _counted(_elements(chunks, start[0], wanted), path, "record", bad_records)
  else:
    yield from _lines(read_records(plain, chunks, b"\n", start, wanted), path, bad_records)


def _counted(
  records: Iterator[tuple[int, object]], path: str, noun: str, bad_records: BadRecords
) -> Iterator[tuple[Cursor, str, object]]:
  number = -1
  try:
    for number, record in records:
      yield (number + 1, 0), f"{path}: {noun} {number + 1}", record
  except UnreadableFileError as error:
    bad_records.add_file(f"{path}: after {noun} {number + 1}", str(error))


def _lines(
  lines: Iterator[tuple[Cursor, bytes]], path: str, bad_records: BadRecords
) -> Iterator[tuple[Cursor, str, object]]:
  try:
    for cursor, line in lines:
      location = f"{path}:{cursor[0]}"
      if line and not line.isspace():
        try:
          yield cursor, location, json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
          bad_records.add(location, "invalid UTF-8", f"byte {error.start} of the line")
        except (ValueError, RecursionError) as error:
          bad_records.add(location, "invalid JSON", str(error))
  except UnreadableFileError as error:
    bad_records.add_file(f"{path}:{error.record}", str(error))


def _beginning(chunks: Iterator[bytes]) -> bytes:
  """The first chunks, up to one with more than white space and a byte order mark."""
  first = b""
  for chunk in chunks:
    first += chunk
    if len(first) > len(codecs.BOM_UTF8) and not first.removeprefix(codecs.BOM_UTF8).isspace():
      break
  return first


def _elements(chunks: Iterator[bytes], start: int, wanted: Wanted) -> Iterator[tuple[int, object]]:
  """(number, element) of a JSON array from element `start` on, parsed one by one.

  Raises UnreadableFileError where the array is damaged: where the next element begins is unknown.
  """
  decode, parse = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
  text, at, more = "", 0, True  # `at`: what comes before it in `text` is parsed

  def read() -> None:
    """Doubles the text that is not parsed yet, so that a long element is tried few times."""
    nonlocal text, at, more
    parts: list[str] = [text[at:]]
    size = 0
    while more and size <= len(parts[0]):
      chunk = next(chunks, None)
      more = chunk is not None
      parts.append(decode(chunk or b"", final=not more))
      size += len(parts[-1])
    text, at = "".join(parts), 0

  def next_character() -> str:
    nonlocal at
    while True:
      while at < len(text) and text[at] in _SPACE:
        at += 1
      if at < len(text) or not more:
        return text[at : at + 1]
      read()

  try:
    next_character()
    at += 1  # the bracket
    if next_character() == "]":
      return
    for number in itertools.count():
      next_character()
      while True:
        try:
          value, end = parse(text, at)
          if end < len(text) or not more:  # else a number may continue in the next chunk
            break
        except (json.JSONDecodeError, RecursionError) as error:
          if not (more and _is_incomplete(error, text)):
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UnreadableFileError(f"invalid JSON from here on ({reason})") from error
        read()
      at = end
      if number >= start and wanted(number):
        yield number, value
      follows = next_character()
      if follows == "]":
        return
      if follows != ",":
        raise UnreadableFileError("invalid JSON from here on: neither ',' nor ']' after an element")
      at += 1
  except UnicodeDecodeError as error:
    raise UnreadableFileError("invalid UTF-8 from here on") from error


def _is_incomplete(error: Exception, text: str) -> bool:
  """Whether the text may be the beginning of valid JSON: the error is at its very end."""
  return isinstance(error, json.JSONDecodeError) and (
    error.msg.startswith("Unterminated string") or error.pos > len(text) - len(r"\ud800\udc00")
  )


# Fields that name a record's subset: in the Pile; RedPajama and SlimPajama; RedPajama on the hub.
_SUBSET_FIELDS = ("meta.pile_set_name", "meta.redpajama_set_name", "red_pajama_subset")


def document_of(
  record: object, text_key: str, name: str, location: str, bad_records: BadRecords
) -> Document | None:
  """The document in a parsed record; None for an empty one, or a bad one that is skipped."""
  text = field_of(record, text_key)
  if not isinstance(text, str):
    bad_records.add(location, _NO_TEXT.format(text_key), _advice(record, text_key))
    return None
  if not text:
    bad_records.skip(location, EMPTY_TEXT)
    return None
  if not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no tokenizer takes it
      bad_records.add(location, "lone surrogate in the text", f"character {error.start}")
      return None
  subsets = (field_of(record, field) for field in _SUBSET_FIELDS)
  subset = next((subset for subset in subsets if isinstance(subset, str) and subset), name)
  return Document(text, subset, location)


def field_of(record: object, key: str) -> object:
  """The field of that name; for 'a.b' without one, the field b of the field a; else None."""
  if not isinstance(record, dict):
    return None
  if key in record:
    return record[key]
  outer, _, inner = key.partition(".")
  return field_of(record.get(outer), inner) if inner else None


def _advice(record: object, text_key: str) -> str:
  if not isinstance(record, dict):
    return f"the record is a {type(record).__name__}, not an object with fields"
  if (value := field_of(record, text_key)) is not None:
    return f"it is a {type(value).__name__}"
  names = ", ".join(itertools.islice(map(str, record), 10)) or "no fields"
  return f"the record has {names}; data.text_key names the field to read, as a.b if it is nested"
