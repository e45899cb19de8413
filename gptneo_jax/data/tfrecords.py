"""TFRecords of ids, as EleutherAI's gpt-neo and mesh-transformer-jax wrote them.

A file is records one after another: the length of the payload (8 bytes, little-endian), its masked
CRC-32C, the payload, and the payload's. A payload is a tf.train.Example whose feature `text` is a
list of ids. There are two forms:

  chunks      of one length, cut from documents with the end of text after each
  documents   of any length, one in a record, without end of text

Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/example.proto,
EleutherAI/gpt-neo data/create_tfrecords.py and inputs.py.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from gptneo_jax.data.documents import BadRecords, Wanted

ENDINGS = (".tfrecord", ".tfrecords")
_LOOKED_AT = 64  # records, of which the form is told
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def read_ids(
  file: Any, path: str, wanted: Wanted, bad_records: BadRecords, end_of_text: int
) -> Iterator[tuple[int, np.ndarray]]:
  """(number past it, int64 ids) of each record that is wanted; documents get their end of text.

  file: open for reading bytes. Raises DataError as `bad_records` decides.
  """
  chunks = _holds_chunks(file, end_of_text)
  for number, payload, fault in _records(file, path, bad_records):
    if not wanted(number):
      continue
    try:
      if fault:
        raise ValueError(fault)
      ids = example_ids(payload)
    except ValueError as error:
      bad_records.add(f"{path}: record {number + 1}", str(error))
      continue
    if not chunks and (not len(ids) or ids[-1] != end_of_text):
      ids = np.append(ids, end_of_text)
    yield number + 1, ids


def _holds_chunks(file: Any, end_of_text: int) -> bool:
  """Whether records are chunks: all of one length, more than one or with an end of text inside."""
  records = _records(file, "", BadRecords("skip", quiet=True))
  found = []
  for _, payload, fault in itertools.islice(records, _LOOKED_AT):
    try:
      found.append(example_ids(payload) if not fault else np.zeros(0, np.int64))
    except ValueError:
      continue
  inside = any((ids[:-1] == end_of_text).any() for ids in found)
  return len({len(ids) for ids in found}) == 1 and (len(found) > 1 or inside)


def _records(file: Any, path: str, bad_records: BadRecords) -> Iterator[tuple[int, bytes, str]]:
  """(number, payload, what is wrong with it or '') of each record, from the beginning."""
  left = file.seek(0, 2)
  file.seek(0)
  for number in itertools.count():
    if not left:
      return
    head = file.read(12)
    where = f"{path}: record {number + 1}"
    if len(head) < 12:
      bad_records.add_file(where, "the file is cut off here")
      return
    size, checksum = struct.unpack("<QI", head)
    if masked_crc32c(head[:8]) != checksum:
      what = "damaged from here on" if number else "no TFRecords: its first checksum is wrong"
      bad_records.add_file(where, what)
      return
    left -= 12
    if size + 4 > left:
      bad_records.add_file(where, "the file is cut off here")
      return
    payload, (checksum,) = file.read(size), struct.unpack("<I", file.read(4))
    left -= size + 4
    yield number, payload, "" if masked_crc32c(payload) == checksum else "its checksum is wrong"


def masked_crc32c(data: bytes) -> int:
  """The checksum of TFRecords, which is not CRC-32C itself."""
  checksum = google_crc32c.value(data)
  return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example_ids(payload: bytes) -> np.ndarray:
  """int64 ids of the feature `text` of a tf.train.Example. Raises ValueError."""
  for features in _messages(payload, 1):
    for entry in _messages(features, 1):
      if b"text" in _messages(entry, 1):
        for feature in _messages(entry, 2):
          return _int64_list(feature)
  raise ValueError("it has no list of ids named 'text'")


def _int64_list(feature: bytes) -> np.ndarray:
  lists = _messages(feature, 3)
  if not lists:
    raise ValueError("its 'text' is no list of whole numbers")
  parts = [
    _varints(value) if kind == BYTES else np.array([value], np.uint64)
    for kind, value in _fields(lists[0], 1)
  ]
  return np.concatenate([np.zeros(0, np.uint64), *parts]).astype(np.int64)


def _messages(message: bytes, number: int) -> list[bytes]:
  """What a field of this number holds, if it is bytes, as often as it is there."""
  return [value for kind, value in _fields(message, number) if kind == BYTES]


def _fields(message: bytes, wanted: int) -> Iterator[tuple[int, Any]]:
  """(wire type, value) of each field of this number. Raises ValueError."""
  place = 0
  while place < len(message):
    tag, place = _varint(message, place)
    number, kind = tag >> 3, tag & 7
    if kind == VARINT:
      value, place = _varint(message, place)
    elif kind in (FIXED64, FIXED32, BYTES):
      size, place = (
        _varint(message, place) if kind == BYTES else (8 if kind == FIXED64 else 4, place)
      )
      value, place = message[place : place + size], place + size
      if place > len(message):
        raise ValueError("it is no tf.train.Example: a field is longer than the record")
    else:
      raise ValueError(f"it is no tf.train.Example: wire type {kind}")
    if number == wanted:
      yield kind, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
  """A number and the place past it."""
  value = 0
  for shift in range(0, 70, 7):
    if place >= len(message):
      break
    value |= (message[place] & 127) << shift
    place += 1
    if message[place - 1] < 128:
      return value & (1 << 64) - 1, place
  raise ValueError("it is no tf.train.Example: a number has no end")


def _varints(packed: bytes) -> np.ndarray:
  """uint64: all numbers of a packed list at once."""
  byte_N = np.frombuffer(packed, np.uint8)
  last_M = np.flatnonzero(byte_N < 128)
  if len(byte_N) and (not len(last_M) or last_M[-1] != len(byte_N) - 1):
    raise ValueError("it is no tf.train.Example: a number has no end")
  first_M = np.concatenate([[0], last_M[:-1] + 1]) if len(last_M) else last_M
  size_M = last_M - first_M + 1
  if len(size_M) and size_M.max() > 10:
    raise ValueError("it is no tf.train.Example: a number has no end")
  value_M = np.zeros(len(last_M), np.uint64)
  for n in range(size_M.max(initial=0)):
    longer_M = size_M > n
    part = byte_N[first_M[longer_M] + n].astype(np.uint64) & np.uint64(127)
    value_M[longer_M] |= part << np.uint64(7 * n)
  return value_M
