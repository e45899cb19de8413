"""Token shards: what is written is read, from any place; what is damaged is named."""

import json
import pathlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.documents import DataError
from gptneo_jax.data.shard_manifest import BLOCK, SETTINGS, VALIDATION
from gptneo_jax.data.token_shards import TokenShards
from tests.helpers.token_folders import END, write


def documents_of(count, seed=0, longest=40):
  rng = np.random.default_rng(seed)
  return [np.append(rng.integers(10, 60000, rng.integers(longest)), END) for _ in range(count)]


@settings(max_examples=25, deadline=None)
@given(
  counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
  dtype=st.sampled_from(["uint16", "uint32"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_place(tmp_path_factory, counts, dtype, seed):
  parts = [documents_of(count, seed + n) for n, count in enumerate(counts)]
  shards = TokenShards(str(write(tmp_path_factory.mktemp("s"), *parts, dtype=dtype)))
  ids = np.concatenate([np.zeros(0, int), *(document for part in parts for document in part)])
  assert shards.tokens == len(ids)
  rng = np.random.default_rng(seed)
  for _ in range(10):
    start, end = np.sort(rng.integers(0, len(ids) + 1, 2))
    if end > start:
      got = shards.ids(int(start), int(end - start))
      assert got.dtype == np.int32
      np.testing.assert_array_equal(got, ids[start:end])
  for shard, part in zip(shards._shards, parts):
    shard.check()
    np.testing.assert_array_equal(shard.ends(), np.cumsum([len(one) for one in part]))


def test_a_damaged_block_is_found_when_it_is_read(tmp_path):
  folder = write(tmp_path / "s", [np.full(BLOCK, 77), np.full(BLOCK, 78)])
  file = folder / "0000-a-000000.bin"
  content = bytearray(file.read_bytes())
  content[BLOCK + 5] ^= 1
  file.write_bytes(content)
  shards = TokenShards(str(folder))
  assert set(shards.ids(0, BLOCK // 2)) == {77}  # the block before
  for start, count in ((BLOCK // 2, 1), (BLOCK - 5, 10), (0, BLOCK)):
    with pytest.raises(DataError, match=r"0000-a-000000\.bin: damaged: bytes 1,048,576 to 2,097,1"):
      shards.ids(start, count)


def change(path, **fields):
  """What a writer of other habits might leave: the checksum is right."""
  content = json.loads(path.read_text()) | fields
  head = {"format": content.pop("format")}
  del content["checksum"]
  checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
  path.write_text(json.dumps(head | content | {"checksum": checksum}))


DAMAGES = {
  "the manifest of": lambda f: (f / "0000-a-000000.json").write_text("{"),
  "its checksum differs": lambda f: (f / "0000-a-000000.json").write_text(
    (f / "0000-a-000000.json").read_text().replace('"text_bytes": 5', '"text_bytes": 6')
  ),
  "its format": lambda f: change(f / "0000-a-000000.json", format="2"),
  "tokens is -3": lambda f: change(f / "0000-a-000000.json", tokens=-3),
  "tokens is '3'": lambda f: change(f / "0000-a-000000.json", tokens="3"),
  "dtype is 'object'": lambda f: change(f / "0000-a-000000.json", dtype="object"),
  "checksums are missing": lambda f: change(f / "0000-a-000000.json", tokens=10**15),
  "unexpected keyword": lambda f: change(f / "0000-a-000000.json", more=1),
  "bytes and should have": lambda f: (f / "0000-a-000000.bin").write_bytes(b"ab"),
  "cannot be read": lambda f: (f / "0000-a-000000.idx").unlink(),
  "not all of 0000-a is prepared": lambda f: (f / "0000-a-000000.json").unlink(),
  "differ in end_of_text": lambda f: change(f / "0000-a-000001.json", end_of_text=3),
  "not a folder that gptneo_jax.prepare made": lambda f: (f / SETTINGS).unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_does_not_belong_is_named(tmp_path, message):
  folder = write(tmp_path / "s", documents_of(3), documents_of(3, 1))
  DAMAGES[message](folder)
  with pytest.raises(DataError, match=message):
    TokenShards(str(folder))


def test_a_file_that_ends_early_is_not_complete(tmp_path):
  folder = write(tmp_path / "s", documents_of(3), documents_of(3, 1))
  (folder / "0000-a-000001.json").unlink()
  with pytest.raises(DataError, match="not all of 0000-a is prepared: run gptneo_jax"):
    TokenShards(str(folder))


@pytest.mark.parametrize("ending", [".idx", VALIDATION, ".bin"])
def test_check_reads_every_file(tmp_path, ending):
  folder = write(tmp_path / "s", documents_of(9), validation=b"text")
  path = pathlib.Path(f"{folder}/0000-a-000000{ending}")
  content = bytearray(path.read_bytes())
  content[2] ^= 4
  path.write_bytes(content)
  with pytest.raises(DataError, match="damaged"):
    TokenShards(str(folder))._shards[0].check()
