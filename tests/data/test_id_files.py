"""Files of ids of other programs: read as they were written, refused where they do not fit."""

import struct

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import id_files
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.prepare import units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import TokenShards
from tests.helpers.data_rows import byte_tokenizer

END = 256
CODES = {"<u2": 8, "<i4": 4, "<i8": 5, "u1": 1}


def megatron(folder, documents, dtype="<u2", per_document=1):
  """As IndexedDatasetBuilder writes them; a document may be several sequences."""
  parts = [part for one in documents for part in np.array_split(one, per_document)]
  lengths = [len(part) for part in parts]
  size = np.dtype(dtype).itemsize
  index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], len(parts), len(documents) + 1)
  index += np.array(lengths, "<i4").tobytes()
  index += (np.cumsum([0, *lengths])[:-1] * size).astype("<i8").tobytes()
  index += (np.arange(len(documents) + 1) * per_document).astype("<i8").tobytes()
  (folder / "m.bin").write_bytes(b"".join(np.asarray(part, dtype).tobytes() for part in parts))
  (folder / "m.idx").write_bytes(index)
  return str(folder / "m.idx")


def datatrove(folder, documents, dtype="<u2"):
  """As TokenizedFile writes them."""
  ends = np.cumsum([len(one) for one in documents]).tolist()
  (folder / "d.ds").write_bytes(b"".join(np.asarray(one, dtype).tobytes() for one in documents))
  (folder / "d.ds.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
  return str(folder / "d.ds")


def read(path, wanted=lambda record: True):
  fs = fsspec.filesystem("file")
  found = id_files.read_ids(fs, path, wanted, BadRecords("stop"), END)
  return [(past, ids.tolist()) for past, ids in found]


rows = st.lists(st.lists(st.integers(0, 255), max_size=9), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(documents=rows, dtype=st.sampled_from(sorted(CODES)), per_document=st.integers(1, 3))
def test_megatron(tmp_path_factory, documents, dtype, per_document):
  path = megatron(tmp_path_factory.mktemp("m"), documents, dtype, per_document)
  expected = [(n, [*ids, END]) for n, ids in enumerate(documents, 1)]
  assert read(path) == expected
  assert read(path, lambda record: record % 2 == 0) == expected[::2]


@settings(max_examples=40, deadline=None)
@given(documents=rows, dtype=st.sampled_from(["<u2", "<u4"]))
def test_datatrove(tmp_path_factory, documents, dtype):
  path = datatrove(tmp_path_factory.mktemp("d"), documents, dtype)
  assert read(path) == [(n, [*ids, END]) for n, ids in enumerate(documents, 1)]


def test_an_end_of_text_that_is_there_stays_one(tmp_path):
  assert read(datatrove(tmp_path, [[1, END], [END]])) == [(1, [1, END]), (2, [END])]


def test_as_shards(tmp_path):
  """Both kinds and a text, in the order of their names."""
  datatrove(tmp_path, [[1, 2], [3]])
  megatron(tmp_path, [[4], [5, 6]])
  (tmp_path / "t.txt").write_text("a")
  byte_tokenizer().save_pretrained(str(tmp_path / "bytes"))
  path = f"{tmp_path}/*.ds,{tmp_path}/*.idx,{tmp_path}/*.txt"
  settings = Settings(path, str(tmp_path / "bytes"), validation_fraction=0.0)
  units.begin(settings, tmp_path / "s")
  list(units.run(settings, tmp_path / "s", Part(0, 1), lambda _: None))
  shards = TokenShards(str(tmp_path / "s"))
  letter = byte_tokenizer()("a").input_ids
  expected = [1, 2, END, 3, END, 4, END, 5, 6, END, *letter, END]
  assert shards.ids(0, shards.tokens).tolist() == expected


def cut(path, count):
  path.write_bytes(path.read_bytes()[:count])


def overwrite(path, place, content):
  whole = bytearray(path.read_bytes())
  whole[place : place + len(content)] = content
  path.write_bytes(whole)


# The index of two documents: 34 bytes of head, 8 of lengths, 16 of places, 24 of documents.
DAMAGES = {
  "not an index of Megatron-LM": ("m.idx", lambda p: p.write_bytes(b"x" * 99)),
  "that holds ids, of version 1": ("m.idx", lambda p: overwrite(p, 17, b"\x06")),
  "of version 1": ("m.idx", lambda p: cut(p, 20)),
  "the index is cut off": ("m.idx", lambda p: cut(p, 60)),
  "sequences are not": ("m.idx", lambda p: overwrite(p, 34, struct.pack("<i", -5))),
  "its sequences": ("m.idx", lambda p: overwrite(p, 50, struct.pack("<q", 2**60))),
  "its documents": ("m.idx", lambda p: overwrite(p, 66, struct.pack("<q", 2**60))),
  "index is cut off": ("m.idx", lambda p: overwrite(p, 18, struct.pack("<Q", 2**63))),
  "m.bin has 4 bytes and should have 6": ("m.bin", lambda p: cut(p, 4)),
  "m.bin": ("m.bin", lambda p: p.unlink()),
  "d.ds.index is of 3 ids, and the file has 5 bytes": ("d.ds", lambda p: cut(p, 5)),
  "d.ds.index is cut off": ("d.ds.index", lambda p: cut(p, 9)),
  "there is no": ("d.ds.index", lambda p: p.unlink()),
  "of .*d.ds.index are not": ("d.ds.index", lambda p: overwrite(p, 0, struct.pack("<Q", 9))),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_does_not_fit_is_named(tmp_path, message):
  documents = [[1, 2], [3]]
  paths = {"m": megatron(tmp_path, documents), "d": datatrove(tmp_path, documents)}
  name, damage = DAMAGES[message]
  damage(tmp_path / name)
  with pytest.raises(DataError, match=message):
    read(paths[name[0]])


@settings(max_examples=150, deadline=None)
@given(head=st.booleans(), rest=st.binary(max_size=80))
def test_any_index(tmp_path_factory, head, rest):
  folder = tmp_path_factory.mktemp("any")
  (folder / "m.bin").write_bytes(b"abcdef")
  start = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, 8) if head else b""
  (folder / "m.idx").write_bytes(start + rest)
  (folder / "d.ds").write_bytes(b"abcdef")
  (folder / "d.ds.index").write_bytes(rest)
  for path in ("m.idx", "d.ds"):
    try:
      read(str(folder / path))
    except DataError:
      continue
