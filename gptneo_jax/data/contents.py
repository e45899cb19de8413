"""What a file holds, told by its first bytes and not by its name, as UTF-8 in chunks."""

import codecs
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gptneo_jax.data.files import GIT_LFS

CHUNK = 1 << 17  # bytes read at a time
_HEAD = 8000  # bytes in which a zero byte means a binary file, as in git


class LostFileError(Exception):
  """The file cannot be read, or not any further; the message says what it is or what is wrong.

  Attributes:
    piece: number of the piece that cannot be read, from 1 (of read_pieces).
  """

  piece = 1


class ForeignFileError(LostFileError):
  """The file holds no text."""


# What names itself in the first bytes and is not opened here.
_FOREIGN = {
  b"PK\x03\x04": "zip archive: unpack it",
  b"7z\xbc\xaf\x27\x1c": "7z archive: unpack it",
  b"Rar!": "rar archive: unpack it",
  b"\x04\x22\x4d\x18": "packed with lz4: unpack it",
  b"\x1f\x9d": "packed with compress: unpack it",
  b"ARROW1": "Arrow file: data.source='datasets' reads it",
  b"PAR1": "parquet file: data.source='jsonl' reads it",
  GIT_LFS: "Git LFS pointer, not the file itself: git lfs pull",
}
_TAR = 257, b"ustar"
# UTF-32's first: its little-endian mark begins as UTF-16's.
_MARKS = (
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


def first_bytes(file) -> bytes:
  """The first bytes of a file, which is left at its start."""
  head = file.read(_HEAD)
  file.seek(0)
  return head


def is_parquet(head: bytes) -> bool:
  return head.startswith(b"PAR1")


def utf8_chunks(file, name: str, offset: int) -> tuple[bool, Iterator[bytes]]:
  """The text of a file: gzip, zstd, xz or bzip2 unpacked, UTF-16 and UTF-32 with a mark decoded.

  Args:
    file: open for reading bytes, at its start.
    name: of the file: one with the ending of a packing is expected to be packed.
    offset: byte to begin at in a plain file; others are read from their beginning.

  Returns:
    (whether the file is plain, chunks of UTF-8, with a byte order mark if it had one). The chunks
    raise LostFileError where the file cannot be read on, and ForeignFileError if it holds no text.
  """
  head = first_bytes(file)
  packing = next((p for p in _PACKINGS if head.startswith(p.marks)), None)
  if packing is not None:
    return False, _decoded(packing.unpack(file))
  if any(head.startswith(mark) for mark, _ in _MARKS):
    return False, _decoded(_plain_chunks(file))
  named = next((p for p in _PACKINGS if name.lower().endswith(p.endings)), None)
  if named is not None and (not head or b"\0" in head or not _is_utf8(head)):
    return False, _failing(f"damaged {named.name} data" if head else f"no {named.name} data: empty")
  if foreign := _foreign(head):
    return False, _failing(foreign, ForeignFileError)
  file.seek(offset)
  return True, _plain_chunks(file)


def split(chunks: Iterator[bytes], separator: bytes) -> Iterator[bytes]:
  """Pieces without the separator. What follows the last one before damage is not yielded."""
  overlap = len(separator) - 1  # of a separator that two chunks share
  parts, tail = [], b""  # a piece can span many chunks
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


def read_pieces(
  plain: bool,
  chunks: Iterator[bytes],
  separator: bytes,
  start: tuple[int, int],
  mine: Callable[[int], bool],
) -> Iterator[tuple[tuple[int, int], bytes]]:
  """Pieces of a file from a cursor on, each with the cursor past it.

  Args:
    plain, chunks: as utf8_chunks gives them for the offset of `start`.
    separator: stands between pieces.
    start: cursor (pieces passed, byte offset of the next one in a plain file).
    mine: says of a piece's number whether to yield it.

  Raises LostFileError, with its `piece`.
  """
  record, offset = start
  number = record if plain else 0  # else those already passed are read again, and dropped
  try:
    for piece in split(chunks, separator):
      if plain:
        offset += len(piece) + len(separator)
      number += 1
      if number > record and mine(number - 1):
        yield (number, offset), piece
  except LostFileError as error:
    error.piece = number + 1
    raise


def _plain_chunks(file) -> Iterator[bytes]:
  while chunk := file.read(CHUNK):
    yield chunk


def _failing(reason: str, kind: type[LostFileError] = LostFileError) -> Iterator[bytes]:
  raise kind(reason)
  yield


def _decoded(chunks: Iterator[bytes]) -> Iterator[bytes]:
  """The chunks as UTF-8, if their first bytes say that they are UTF-16 or UTF-32."""
  head = b""
  for chunk in chunks:
    head += chunk
    if len(head) >= _HEAD:
      break
  chunks = itertools.chain([head], chunks)
  encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
  if encoding is None:
    if any(head.startswith(packing.marks) for packing in _PACKINGS):
      raise ForeignFileError("packed twice: unpack it once")
    if foreign := _foreign(head):
      raise ForeignFileError(foreign)
    yield from chunks
    return
  decoder = codecs.getincrementaldecoder(encoding)()
  try:
    for chunk in chunks:
      yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()
  except UnicodeError as error:
    raise LostFileError(f"invalid {encoding.upper()} from here on") from error


def _foreign(head: bytes) -> str:
  """What a file is that begins so, if it is no text; '' if it may be text."""
  for mark, what in _FOREIGN.items():
    if head.startswith(mark):
      return what
  place, mark = _TAR
  if head[place:].startswith(mark):
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

  # One decompressor a frame: stream_reader ends silently where a file was cut off.
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
    raise LostFileError("damaged zstd data") from error
  if not frame.eof:
    raise LostFileError("the zstd file is cut off here")


def _gzip_chunks(file) -> Iterator[bytes]:
  import gzip

  yield from _unpacked(gzip.GzipFile(fileobj=file), "gzip", (zlib.error, gzip.BadGzipFile))


def _xz_chunks(file) -> Iterator[bytes]:
  import lzma

  yield from _unpacked(lzma.LZMAFile(file), "xz", (lzma.LZMAError,))


def _bzip2_chunks(file) -> Iterator[bytes]:
  import bz2

  yield from _unpacked(bz2.BZ2File(file), "bzip2", ())


def _unpacked(stream: Any, name: str, errors: tuple[type[Exception], ...]) -> Iterator[bytes]:
  try:
    # read1: what was whole before a cut still comes out.
    while chunk := stream.read1(CHUNK):
      yield chunk
  except EOFError as error:
    raise LostFileError(f"the {name} file is cut off here") from error
  except errors as error:
    raise LostFileError(f"damaged {name} data") from error
  except OSError as error:
    if str(error) == "Invalid data stream":  # bz2 has no error of its own
      raise LostFileError(f"damaged {name} data") from error
    raise


class _Packing(NamedTuple):
  name: str
  endings: tuple[str, ...]
  marks: tuple[bytes, ...]
  unpack: Callable[[Any], Iterator[bytes]]


# zstd's skippable frames, which pzstd writes first, begin with 50 to 5f.
_SKIPPABLE = tuple(bytes([0x50 + number, 0x2A, 0x4D, 0x18]) for number in range(16))
# Three letters could begin a text: with the level and the mark of a block, or of the end.
_BZIP2 = tuple(
  b"BZh%d%b" % (level, mark) for level in range(1, 10) for mark in (b"1AY&SY", b"\x17rE8P\x90")
)
_PACKINGS = (
  _Packing("zstd", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), _zstd_chunks),
  _Packing("gzip", (".gz",), (b"\x1f\x8b\x08",), _gzip_chunks),
  _Packing("xz", (".xz",), (b"\xfd7zXZ\0",), _xz_chunks),
  _Packing("bzip2", (".bz2",), _BZIP2, _bzip2_chunks),
)
PACKED = tuple(ending for packing in _PACKINGS for ending in packing.endings)  # of file names
