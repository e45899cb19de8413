"""TensorBoard's files of events, read by tensorboardX's messages and checksums."""

import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


def read(data: bytes) -> list[Event]:
  """Each record's message; its checksums are right."""
  found, at = [], 0
  while at < len(data):
    size, checksum = struct.unpack_from("<QI", data, at)
    assert checksum == masked_crc32c(data[at : at + 8])
    message = data[at + 12 : at + 12 + size]
    assert struct.unpack_from("<I", data, at + 12 + size) == (masked_crc32c(message),)
    found.append(Event.FromString(message))
    at += 12 + size + 4
  return found


def scalars(data: bytes) -> list[tuple[int, float]]:
  """(step, value) of each scalar."""
  return [(event.step, value.simple_value) for event in read(data) for value in event.summary.value]
