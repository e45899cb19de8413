"""TFRecords: files of both forms to the exact ids, and whatever is no TFRecord refused."""

import io
import json
import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import tfrecords
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.prepare import units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import TokenShards

EOS = 50256


def masked(data):
  checksum = google_crc32c.value(data)
  return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload):
  size = struct.pack("<Q", len(payload))
  return size + masked(size) + payload + masked(payload)


def varint(value):
  out = bytearray()
  while True:
    out.append(value & 127 | (128 if value > 127 else 0))
    value >>= 7
    if not value:
      return bytes(out)


def field(number, content):
  return varint(number << 3 | 2) + varint(len(content)) + content


def example(ids, *, packed=True, name=b"text", before=b""):
  """before: another entry of the map."""
  values = (
    field(1, b"".join(map(varint, ids))) if packed
    else b"".join(varint(1 << 3) + varint(i) for i in ids)
  )  # fmt: skip
  entry = field(1, name) + field(2, field(3, values))
  return field(1, (field(1, before) if before else b"") + field(1, entry))


HASH = field(1, b"hash") + field(2, field(1, field(1, b"a file's name")))


def read(content, policy="stop", path="a.tfrecords", wanted=lambda record: True):
  bad = BadRecords(policy, quiet=True)
  found = tfrecords.read_ids(io.BytesIO(content), path, wanted, bad, EOS)
  return [ids.tolist() for _, ids in found], bad


@settings(max_examples=60, deadline=None)
@given(
  rows=st.lists(st.lists(st.integers(0, 2**40), max_size=9), min_size=1, max_size=6),
  packed=st.booleans(), extra=st.booleans(),
)  # fmt: skip
def test_what_was_written_is_read(rows, packed, extra):
  content = b"".join(
    record(example(ids, packed=packed, before=HASH if extra else b"")) for ids in rows
  )
  found, _ = read(content)
  chunks = len({len(ids) for ids in rows}) == 1 and (len(rows) > 1 or EOS in rows[0][:-1])
  ended = [ids if chunks or ids[-1:] == [EOS] else [*ids, EOS] for ids in rows]
  assert found == ended
  assert read(content, wanted=lambda n: n % 2 == 1)[0] == ended[1::2]


@pytest.mark.parametrize("name", ["tiny_0_4", "tinydocs_0", "tinyhash_0"])
def test_real_files(shared_data, name, tmp_path):
  """As TensorFlow wrote them: straight, and as shards."""
  folder = shared_data / "tfrecords"
  expected = json.loads((folder / "expected.json").read_text())
  rows = expected["chunks"] if name == "tiny_0_4" else [[*d, EOS] for d in expected["documents"]]
  path = folder / f"{name}.tfrecords"
  assert read(path.read_bytes())[0] == rows
  settings = Settings(str(path), str(shared_data / "gpt2_tokenizer"), records=2)
  units.begin(settings, tmp_path)
  list(units.run(settings, tmp_path, Part(0, 1), lambda _: None))
  shards = TokenShards(str(tmp_path))
  assert shards.ids(0, shards.tokens).tolist() == [i for row in rows for i in row]
  assert len(shards.shards) == 2


XML = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>"
GOOD = record(example([1, 2, 3])) + record(example([4]))


@pytest.mark.parametrize(
  "content, message",
  [
    (XML, r"record 1: no TFRecords: its first checksum is wrong"),
    (GOOD[:-1], "record 2: the file is cut off here"),
    (GOOD[: len(record(example([1, 2, 3]))) + 5], "record 2: the file is cut off here"),
    (record(b"")[:3], "record 1: the file is cut off here"),
    (GOOD[:14] + b"\xff" + GOOD[15:], "record 1: its checksum is wrong"),
    (record(example([1])) + b"x" * 20, "record 2: damaged from here on"),
    (struct.pack("<Q", 2**60) + masked(struct.pack("<Q", 2**60)), "record 1: the file is cut"),
    (record(example([1], name=b"txet")), "record 1: it has no list of ids named 'text'"),
    (record(field(1, field(1, HASH))), "no list of ids named 'text'"),
    (record(b"\x0a\xff\xff\xff\x0f"), "a field is longer than the record"),
    (record(b"\xff" * 30), "a number has no end"),
    (record(b"\x0b"), "wire type 3"),
  ],
  ids=range(12),
)
def test_what_is_wrong(content, message):
  with pytest.raises(DataError, match=rf"a\.tfrecords: .*{message}"):
    read(content)
  found, bad = read(content, "skip")
  assert sum(bad.counts.values()) == 1 and len(found) <= 1


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), valid=st.booleans())
def test_any_bytes(data, valid):
  """As a file, or as a payload with the right checksums: ids, or an error of data."""
  try:
    found, _ = read(record(data) if valid else data)
  except DataError:
    return
  assert valid or not data
  assert all(ids[-1] == EOS for ids in found)


def test_ids_of_another_tokenizer(shared_data, tmp_path):
  (tmp_path / "a.tfrecords").write_bytes(record(example([1, 50257])) + record(example([1])))
  settings = Settings(str(tmp_path / "a.tfrecords"), str(shared_data / "gpt2_tokenizer"))
  units.begin(settings, tmp_path / "s")
  with pytest.raises(DataError, match=r"a\.tfrecords: there is an id 50257; the tokenizer has 0"):
    list(units.run(settings, tmp_path / "s", Part(0, 1), lambda _: None))


def test_numbers_in_packed_lists():
  numbers = [0, 1, 127, 128, 300, 2**31, 2**63 - 1]
  assert tfrecords._varints(b"".join(map(varint, numbers))).tolist() == numbers
  assert np.array_equal(tfrecords.example_ids(example([])), [])
