"""Compressed and encoded files as UTF-8; the format is told by the first bytes, not the name."""

import codecs
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gptneo_jax.data.documents import Cursor, Wanted
from gptneo_jax.data.files import GIT_LFS

CHUNK = 1 << 17  # bytes read at a time
_HEAD = 8000  # bytes at the start; a zero byte in them means a binary file, as in git


class UnreadableFileError(Exception):
  """The file cannot be read, or not any further; the message says why.

  Attributes:
    record: number of the record that cannot be read, from 1; set by read_records.
  """

  record = 1


class NotTextError(UnreadableFileError):
  """The file holds no text."""


# Formats that are recognised by their first bytes and not read here.
_UNSUPPORTED = {
  b"PK\x03\x04": "zip archive: unpack it",
  b"7z\xbc\xaf\x27\x1c": "7z archive: unpack it",
  b"Rar!": "rar archive: unpack it",
  b"\x04\x22\x4d\x18": "compressed with lz4: decompress it",
  b"\x1f\x9d": "compressed with compress: decompress it",
  b"ARROW1": "Arrow file: data.source='datasets' reads it",
  b"PAR1": "parquet file: data.source='jsonl' reads it",
  GIT_LFS: "Git LFS pointer, not the file itself: git lfs pull",
}
_TAR = 257, b"ustar"
# UTF-32 first: its little-endian byte order mark begins with UTF-16's.
_BYTE_ORDER_MARKS = (
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


def first_bytes(file) -> bytes:
  """The first bytes of an open file; its position is the start again."""
  head = file.read(_HEAD)
  file.seek(0)
  return head


def is_parquet(head: bytes) -> bool:
  return head.startswith(b"PAR1")


def ending(path: str) -> str:
  """The last ending of a name in lower case but for that of a compression: '.csv' of B.CSV.gz."""
  name = path.lower().rsplit("/", 1)[-1]
  for compressed in COMPRESSED_ENDINGS:
    name = name.removesuffix(compressed)
  stem, dot, last = name.rpartition(".")
  return f".{last}" if dot and stem else ""


def utf8_chunks(file, name: str, offset: int) -> tuple[bool, Iterator[bytes]]:
  """The text of a file: gzip, zstd, xz or bzip2 decompressed, UTF-16 and UTF-32 with a byte order
  mark decoded.

  Args:
    file: open for reading bytes, at its start.
    name: of the file; one with the ending of a compression, such as .gz, must be compressed.
    offset: byte at which to begin in a plain file; others are read from their beginning.

  Returns:
    (whether the file is plain UTF-8, chunks of UTF-8, with a byte order mark if it had one). The
    chunks raise UnreadableFileError where the file cannot be read any further, and NotTextError if
    it holds no text.
  """
  head = first_bytes(file)
  compression = next((c for c in _COMPRESSIONS if head.startswith(c.magic)), None)
  if compression is not None:
    return False, _decoded(compression.decompress(file))
  if any(head.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS):
    return False, _decoded(_plain_chunks(file))
  named = next((c for c in _COMPRESSIONS if name.lower().endswith(c.endings)), None)
  if named is not None and (not head or b"\0" in head or not _is_utf8(head)):
    return False, _failing(f"damaged {named.name} data" if head else f"no {named.name} data: empty")
  if unsupported := _unsupported(head):
    return False, _failing(unsupported, NotTextError)
  file.seek(offset)
  return True, _plain_chunks(file)


def split_chunks(chunks: Iterator[bytes], separator: bytes) -> Iterator[bytes]:
  """Records between separators. One that is cut short by damage is not yielded."""
  overlap = len(separator) - 1  # of a separator that two chunks share
  parts, tail = [], b""  # a record can span many chunks
  for chunk in chunks:
    first, *others = (tail + chunk).split(separator)
    if others:
      yield b"".join([*parts, first])
      yield from others[:-1]
      parts, first = [], others[-1]
    cut = max(0, len(first) - overlap)
    parts.append(first[:cut])
    tail = first[cut:]
  if last := b"".join([*parts, tail]):
    yield last


def read_records(
  plain: bool,
  chunks: Iterator[bytes],
  separator: bytes,
  start: Cursor,
  wanted: Wanted,
) -> Iterator[tuple[Cursor, bytes]]:
  """Records of a file from a cursor on, each with the cursor past it.

  Args:
    plain, chunks: as utf8_chunks gives them for the offset of `start`.
    separator: between two records.
    start: cursor of the first one.
    wanted: says of a record's number whether to yield it.

  Raises UnreadableFileError, with the number of the `record`.
  """
  before, offset = start
  number = before if plain else 0  # else the records before the cursor are read again, and dropped
  try:
    for record in split_chunks(chunks, separator):
      if plain:
        offset += len(record) + len(separator)
      number += 1
      if number > before and wanted(number - 1):
        yield (number, offset), record
  except UnreadableFileError as error:
    error.record = number + 1
    raise


def _plain_chunks(file) -> Iterator[bytes]:
  while chunk := file.read(CHUNK):
    yield chunk


def _failing(reason: str, kind: type[UnreadableFileError] = UnreadableFileError) -> Iterator[bytes]:
  raise kind(reason)
  yield


def _decoded(chunks: Iterator[bytes]) -> Iterator[bytes]:
  """The chunks as UTF-8, decoded if they begin with the mark of UTF-16 or UTF-32."""
  head = b""
  for chunk in chunks:
    head += chunk
    if len(head) >= _HEAD:
      break
  chunks = itertools.chain([head], chunks)
  encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
  if encoding is None:
    if any(head.startswith(compression.magic) for compression in _COMPRESSIONS):
      raise NotTextError("compressed twice: decompress it once")
    if unsupported := _unsupported(head):
      raise NotTextError(unsupported)
    yield from chunks
    return
  decoder = codecs.getincrementaldecoder(encoding)()
  try:
    for chunk in chunks:
      yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()
  except UnicodeError as error:
    raise UnreadableFileError(f"invalid {encoding.upper()} from here on") from error


def _unsupported(head: bytes) -> str:
  """What a file with these first bytes is, if it is not text; '' if it may be text."""
  for magic, what in _UNSUPPORTED.items():
    if head.startswith(magic):
      return what
  place, magic = _TAR
  if head[place:].startswith(magic):
    return "tar archive: unpack it"
  return "binary file" if b"\0" in head else ""


def _is_utf8(head: bytes) -> bool:
  try:
    codecs.getincrementaldecoder("utf-8")().decode(head)
  except UnicodeError:
    return False
  return True


def _zstd_chunks(file) -> Iterator[bytes]:
  import zstandard

  # One decompressor for each frame: stream_reader ends silently where a file was cut off.
  decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
  frame, data = decompressor.decompressobj(), b""
  try:
    while data or (data := file.read(CHUNK)):
      if frame.eof:
        frame = decompressor.decompressobj()
      chunk = frame.decompress(data)
      data = frame.unused_data if frame.eof else b""
      if chunk:
        yield chunk
  except zstandard.ZstdError as error:
    raise UnreadableFileError("damaged zstd data") from error
  if not frame.eof:
    raise UnreadableFileError("the zstd file is cut off here")


def _gzip_chunks(file) -> Iterator[bytes]:
  import gzip

  yield from _decompressed(gzip.GzipFile(fileobj=file), "gzip", (zlib.error, gzip.BadGzipFile))


def _xz_chunks(file) -> Iterator[bytes]:
  import lzma

  yield from _decompressed(lzma.LZMAFile(file), "xz", (lzma.LZMAError,))


def _bzip2_chunks(file) -> Iterator[bytes]:
  import bz2

  yield from _decompressed(bz2.BZ2File(file), "bzip2", ())


def _decompressed(stream: Any, name: str, errors: tuple[type[Exception], ...]) -> Iterator[bytes]:
  try:
    # read1 still gives what comes before the end of a file that was cut off.
    while chunk := stream.read1(CHUNK):
      yield chunk
  except EOFError as error:
    raise UnreadableFileError(f"the {name} file is cut off here") from error
  except errors as error:
    raise UnreadableFileError(f"damaged {name} data") from error
  except OSError as error:
    if str(error) == "Invalid data stream":  # bz2 raises a plain OSError
      raise UnreadableFileError(f"damaged {name} data") from error
    raise


class _Compression(NamedTuple):
  name: str
  endings: tuple[str, ...]  # of file names
  magic: tuple[bytes, ...]  # first bytes
  decompress: Callable[[Any], Iterator[bytes]]


# zstd's skippable frames, which pzstd writes first, begin with 50 to 5f (RFC 8878, 3.1.2).
_SKIPPABLE = tuple(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))
# Its three letters could begin a text: here with the level and the mark of a block or of the end.
_BZIP2 = tuple(
  b"BZh%d%b" % (level, mark) for level in range(1, 10) for mark in (b"1AY&SY", b"\x17rE8P\x90")
)
_COMPRESSIONS = (
  _Compression("zstd", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), _zstd_chunks),
  _Compression("gzip", (".gz",), (b"\x1f\x8b\x08",), _gzip_chunks),
  _Compression("xz", (".xz",), (b"\xfd7zXZ\0",), _xz_chunks),
  _Compression("bzip2", (".bz2",), _BZIP2, _bzip2_chunks),
)
COMPRESSED_ENDINGS = tuple(ending for c in _COMPRESSIONS for ending in c.endings)
