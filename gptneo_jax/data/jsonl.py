"""JSON lines, plain or compressed with zstd or gzip: one record a line, as in the Pile."""

import json
import zlib
from collections.abc import Callable, Iterator

from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.files import match_files

_CHUNK = 1 << 17  # compressed bytes read at a time


class _DamagedError(Exception):
  """The file cannot be read any further."""


class JsonLines:
  """Records of a glob of files.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(self, path: str, name: str, text_key: str, bad_records: BadRecords):
    self._fs, self.shards = match_files(path, folders=False)
    self._name, self._text_key, self._bad_records = name, text_key, bad_records

  def read(
    self, shard: int, start: tuple[int, int], mine: Callable[[int], bool]
  ) -> Iterator[tuple[tuple[int, int], Document]]:
    """Documents of one file from a cursor on.

    Args:
      shard: number of the file.
      start: cursor (record, byte offset): lines passed, and where the next one starts in a plain
        file (a compressed one is read from its beginning and the lines are counted).
      mine: says of a record's number whether to yield it; the others are not even parsed.

    Yields:
      (cursor past the record, document).

    Raises:
      DataError: naming file and line of a bad record.
    """
    path = self.shards[shard]
    record, offset = start
    plain = not path.endswith((".zst", ".gz"))
    # Of a compressed file the lines already passed are read again, and dropped.
    number = record if plain else 0
    try:
      for line in _lines(self._chunks(path, offset if plain else 0)):
        if plain:
          offset += len(line) + 1
        number += 1
        if number > record and mine(number - 1):
          document = self._parse(line, f"{path}:{number}")
          if document is not None:
            yield (number, offset), document
    except _DamagedError as error:
      self._bad_records.add(f"{path}:{number + 1}", str(error))

  def _chunks(self, path: str, offset: int) -> Iterator[bytes]:
    try:
      with self._fs.open(path, "rb") as file:
        if path.endswith(".zst"):
          yield from _zstd_chunks(file)
        elif path.endswith(".gz"):
          yield from _gzip_chunks(file)
        else:
          file.seek(offset)
          while chunk := file.read(_CHUNK):
            yield chunk
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error}") from error

  def _parse(self, line: bytes, location: str) -> Document | None:
    """The document in a line; None for a blank line or a bad record that is skipped."""
    if not line or line.isspace():
      return None
    try:
      record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
      self._bad_records.add(location, "invalid UTF-8", f"byte {error.start} of the line")
      return None
    except (ValueError, RecursionError) as error:
      self._bad_records.add(location, "invalid JSON", str(error))
      return None
    return document_of(record, self._text_key, self._name, location, self._bad_records)


def document_of(
  record: object, text_key: str, name: str, location: str, bad_records: BadRecords
) -> Document | None:
  """The document in a parsed record; None for a bad one that is skipped."""
  fields = record if isinstance(record, dict) else {}
  text = fields.get(text_key)
  if not isinstance(text, str):
    bad_records.add(location, f"no text: field '{text_key}' is missing or not a string")
    return None
  if not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError as error:  # "\ud800" passes as JSON, but no tokenizer takes it
      bad_records.add(location, "lone surrogate in the text", f"character {error.start}")
      return None
  meta = fields.get("meta")
  subset = meta.get("pile_set_name") if isinstance(meta, dict) else None
  return Document(text, subset if isinstance(subset, str) and subset else name, location)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
  """Lines without their ends. What follows the last line end before damage is not yielded."""
  parts = []  # a line can span many chunks
  for chunk in chunks:
    first, *others = chunk.split(b"\n")
    parts.append(first)
    if others:
      yield b"".join(parts)
      yield from others[:-1]
      parts = [others[-1]]
  last = b"".join(parts)
  if last:
    yield last


def _zstd_chunks(file) -> Iterator[bytes]:
  import zstandard

  # One decompressor a frame: stream_reader ends silently where a file was cut off.
  decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
  frame, data, empty = decompressor.decompressobj(), b"", True
  try:
    while data or (data := file.read(_CHUNK)):
      empty = False
      if frame.eof:
        frame = decompressor.decompressobj()
      chunk = frame.decompress(data)
      data = frame.unused_data if frame.eof else b""
      if chunk:
        yield chunk
  except zstandard.ZstdError as error:
    raise _DamagedError("damaged zstd data") from error
  if empty or not frame.eof:
    raise _DamagedError("the zstd file is cut off here")


def _gzip_chunks(file) -> Iterator[bytes]:
  import gzip

  empty = True
  try:
    with gzip.GzipFile(fileobj=file) as stream:
      # read1: what was whole before a cut still comes out.
      while chunk := stream.read1(_CHUNK):
        empty = False
        yield chunk
  except EOFError as error:
    raise _DamagedError("the gzip file is cut off here") from error
  except (gzip.BadGzipFile, zlib.error) as error:
    raise _DamagedError("damaged gzip data") from error
  if empty and not file.tell():
    raise _DamagedError("the gzip file is cut off here")
