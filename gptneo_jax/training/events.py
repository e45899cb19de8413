"""TensorBoard's files of events, with scalars in them.

A file is records framed as those of TFRecord; each holds one protobuf message Event. Sources:
tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto, and
https://protobuf.dev/programming-guides/encoding.

They are encoded here because the libraries for it import PyTorch or TensorFlow where those are
installed, which takes seconds at the start of each run; and because their writers, threads with a
queue, end at the first write that fails.
"""

import struct
import time
from collections.abc import Mapping

from gptneo_jax.data.tfrecords import BYTES, FIXED32, FIXED64, VARINT, masked_crc32c

_START = 1  # SessionLog.SessionStatus


def beginning(purge_step: int) -> bytes:
  """The first records of a file; what other files of the folder hold from `purge_step` on is
  void."""
  file_version, session_log = 3, 7
  return _event(0, file_version, b"brain.Event:2") + _event(
    purge_step, session_log, _integer(1, _START)
  )


def scalars(step: int, values: Mapping[str, float]) -> bytes:
  """One record with the values, as float32."""
  summary = 5
  found = (
    _bytes(1, _bytes(1, tag.encode()) + _key(2, FIXED32) + _float32(value))
    for tag, value in values.items()
  )
  return _event(step, summary, b"".join(found))


def _event(step: int, field: int, content: bytes) -> bytes:
  time_and_step = _key(1, FIXED64) + struct.pack("<d", time.time()) + _integer(2, step)
  message = time_and_step + _bytes(field, content)
  length = struct.pack("<Q", len(message))
  return length + _checksum(length) + message + _checksum(message)


def _checksum(data: bytes) -> bytes:
  return struct.pack("<I", masked_crc32c(data))


def _float32(value: float) -> bytes:
  try:
    return struct.pack("<f", value)
  except OverflowError:  # past the largest float32
    return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _key(field: int, wire_type: int) -> bytes:
  return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
  return _key(field, VARINT) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
  return _key(field, BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
  groups = []
  while value > 0x7F:
    groups.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*groups, value])
