"""Token shards behind a URL give the ids of the folder, whatever the network does."""

import dataclasses
import json
import time

import numpy as np
import pytest

from gptneo_jax.data import remote_folder, token_windows
from gptneo_jax.data.batches import TrainBatches
from gptneo_jax.data.corpus_size import amount_of_data
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.evaluation import evaluation_documents
from gptneo_jax.data.shard_manifest import BLOCK, SETTINGS, TOKENIZER, VALIDATION
from gptneo_jax.data.sources import check_sources
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.data.tokenizer import load_tokenizer
from gptneo_jax.prepare import main as prepare
from tests.helpers.data_files import data_config
from tests.helpers.data_rows import assert_equal, byte_tokenizer, take, write_shards
from tests.helpers.file_server import FileServer
from tests.helpers.token_folders import write


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(remote_folder, "_FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """Two shards of 5.5 and 2 blocks."""
  rng = np.random.default_rng(0)
  parts = [rng.integers(10, 60_000, size // 2) for size in (5 * BLOCK + BLOCK // 2, 2 * BLOCK)]
  return write(tmp_path_factory.mktemp("large") / "s", *[[part] for part in parts])


def remote(server, tmp_path, gib=1.0):
  return TokenShards(server.url, str(tmp_path / "cache"), gib)


def read_everywhere(shards, local, count=60, seed=1):
  rng = np.random.default_rng(seed)
  for start in rng.integers(0, local.tokens - BLOCK, count):
    size = int(rng.choice([1, 700, BLOCK]))
    np.testing.assert_array_equal(shards.ids(int(start), size), local.ids(int(start), size))


def test_the_same_ids_from_a_server_that_fails(large, tmp_path, monkeypatch):
  monkeypatch.setattr(remote_folder, "_TIMEOUT", 0.3)  # a slow answer is one that does not come
  local = TokenShards(str(large))
  with FileServer(large, share=0.3) as server:
    shards = remote(server, tmp_path)
    assert shards.manifests == local.manifests and shards.shards == local.shards
    assert (shards.tokens, shards.tokenizer) == (local.tokens, local.tokenizer)
    read_everywhere(shards, local)
    assert sum(server.failed.values()) > 3
    blocks = {request for request in server.requests if request[1]}
    assert len(blocks) == 8
    server.share = 0
    done = len(server.requests)
    read_everywhere(remote(server, tmp_path), local, seed=2)
    assert len(server.requests) == done


def test_the_limit_holds_while_more_is_read(large, tmp_path):
  local, limit = TokenShards(str(large)), 3.5 * BLOCK
  with FileServer(large) as server:
    shards = remote(server, tmp_path, limit / 2**30)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, local.tokens - 100, 40):
      np.testing.assert_array_equal(shards.ids(int(start), 100), local.ids(int(start), 100))
      kept = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
      assert sum(kept) <= limit
    assert len(kept) >= 2
    assert len(server.requests) > 20


def test_a_damaged_cache_heals(large, tmp_path):
  local = TokenShards(str(large))
  with FileServer(large) as server:
    remote(server, tmp_path).ids(0, local.tokens)
    for number, path in enumerate((tmp_path / "cache").rglob("*/??/*")):
      content = path.read_bytes()
      path.write_bytes(content[:-1] if number % 2 else content[:9] + b"\0\1\2" + content[12:])
    remote_folder.remote_folder.cache_clear()
    shards = remote(server, tmp_path)
    np.testing.assert_array_equal(shards.ids(0, local.tokens), local.ids(0, local.tokens))
    assert len([name for name, part in server.requests if part]) == 16


def test_a_full_cache_needs_no_server(large, tmp_path):
  local, server = TokenShards(str(large)), FileServer(large)
  shards = remote(server, tmp_path)
  shards.ids(0, local.tokens)
  server.close()
  read_everywhere(shards, local)
  remote_folder.remote_folder.cache_clear()  # but a start asks it what there is
  with pytest.raises(DataError, match=r"^http://\S+/prepare\.json: cannot be read: .*") as caught:
    remote(server, tmp_path)
  assert "\n" not in str(caught.value)


def test_a_damaged_file_of_the_server_is_named(tmp_path):
  folder = write(tmp_path / "s", [np.full(BLOCK, 77), np.full(BLOCK, 78)])
  file = folder / "0000-a-000000.bin"
  content = bytearray(file.read_bytes())
  content[BLOCK + 5] ^= 1
  file.write_bytes(content)
  with FileServer(folder) as server:
    shards = remote(server, tmp_path)
    assert set(shards.ids(0, BLOCK // 2)) == {77}
    with pytest.raises(DataError, match=r"0000-a-000000\.bin: damaged: bytes 1,048,576 to 2,097,1"):
      shards.ids(BLOCK // 2, 1)


WRONG = {
  "not all of 0000-a is prepared": lambda f: (f / "0000-a-000001.json").unlink(),
  "000000.json: not the manifest": lambda f: (f / "0000-a-000000.json").write_text("{"),
  "not a folder that gptneo_jax.prepare made: prepare.json: http": lambda f: (
    f / SETTINGS
  ).unlink(),
  "prepare.json: it names no files": lambda f: (f / SETTINGS).write_text('{"sources": []}'),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_belong_is_named(tmp_path, message):
  folder = write(tmp_path / "s", [np.array([1, 9])], [np.array([2, 9])])
  WRONG[message](folder)
  with FileServer(folder) as server:
    with pytest.raises(DataError, match=message):
      remote(server, tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Prepared by the program, with documents held out."""
  above = tmp_path_factory.mktemp("prepared")
  (above / "raw").mkdir()
  texts = [[f"text {n} of file {file}, " + "abc " * (n % 40) for n in range(150)] for file in "xy"]
  path = write_shards(above / "raw", texts, ".jsonl.zst")
  byte_tokenizer().save_pretrained(above / "tokenizer")
  arguments = ["--workers", "1", "--records", "40", "--validation_fraction", "0.2"]
  prepare([path, str(above / "s"), "--tokenizer", str(above / "tokenizer"), *arguments])
  return above / "s", path


def config_of(path, tmp_path, **options):
  return dataclasses.replace(
    data_config(path, "shards", num_streams=2, cache=str(tmp_path / "cache"), cache_gib=0.1),
    **{"validation_fraction": 0.2} | options,
  )


def batches_of(config):
  tokenizer = byte_tokenizer()
  return TrainBatches(config, tokenizer, batch_size=4, seq_len=15, seed=3)


def test_batches_and_their_state_are_those_of_the_folder(prepared, tmp_path):
  folder, _ = prepared
  here = batches_of(config_of(str(folder), tmp_path))
  expected = take(here, 40)
  with FileServer(folder, share=0.1, faults=["503", "reset", "cut off"]) as server:
    config = config_of(f"{server.url}/", tmp_path)
    check_sources(config)
    there = batches_of(config)
    first = take(there, 15)
    state = json.loads(json.dumps(there.get_state()))
    there.close()
    resumed = batches_of(config)
    resumed.set_state(state)
    assert_equal(first + take(resumed, 25), expected)
    ours, theirs = here.get_state(), resumed.get_state()
    assert ours["streams"] == theirs["streams"]
    differing = {
      n for n in ours["fingerprint"] if ours["fingerprint"][n] != theirs["fingerprint"][n]
    }
    assert differing == {"path"}
    resumed.close()
  here.close()


def test_held_out_documents_tokenizer_and_amount(prepared, tmp_path):
  folder, _ = prepared
  local = config_of(str(folder), tmp_path)
  expected = list(evaluation_documents(local, "validation"))
  assert len(expected) > 20
  with FileServer(folder, share=0.2, faults=["503", "cut off", "damaged"]) as server:
    config = config_of(server.url, tmp_path)
    server.faults = ["503", "cut off"]  # a tokenizer has no checksum
    tokenizer = load_tokenizer(f"{server.url}/{TOKENIZER}")
    assert tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    server.faults = ["503", "cut off", "damaged"]
    documents = list(evaluation_documents(config, "validation"))
    assert [document.text for document in documents] == [document.text for document in expected]
    assert {document.subset for document in documents} == {d.subset for d in expected}
    assert documents[0].location.startswith(f"{server.url}/0000-000.jsonl.zst-000000{VALIDATION}:1")
    line = amount_of_data(config, tokenizer, 60)
    assert line.partition(";")[0] == amount_of_data(local, tokenizer, 60).partition(";")[0]
    assert line.endswith("validation: held out by hash, not counted")
    with pytest.raises(DataError, match="no test documents were held out"):
      evaluation_documents(dataclasses.replace(config, test_fraction=0.1), "test")


def test_a_mixture(prepared, tmp_path):
  folder, raw = prepared
  mixed = lambda path: dataclasses.replace(
    data_config("", "stdlib", num_streams=2),
    source="mixture", mixture=((1, "shards", path), (1, "jsonl", raw)), cache=str(tmp_path / "c"),
  )  # fmt: skip
  here = batches_of(mixed(str(folder)))
  with FileServer(folder) as server:
    there = batches_of(mixed(server.url))
    assert_equal(take(there, 30), take(here, 30))
    there.close()
  here.close()


def test_a_cache_that_is_too_small_for_the_streams(large, tmp_path):
  with FileServer(large) as server:
    shards = remote(server, tmp_path, 10 / 1024)
    with pytest.raises(DataError, match=r"data\.cache_gib 0\.00976\S* is too little for 4 streams"):
      token_windows.WindowStream(shards, width=100, stream=0, num_streams=4, key=(1,))


def test_windows_are_fetched_before_they_are_read(large, tmp_path, monkeypatch):
  """With its first window all of a group, and of the next one; each block once."""
  monkeypatch.setattr(token_windows, "_GROUP_RUNS", 1)
  server = FileServer(large)
  stream, other = (
    token_windows.WindowStream(shards, width=1000, stream=0, num_streams=2, key=(1,))
    for shards in (remote(server, tmp_path), TokenShards(str(large)))
  )
  np.testing.assert_array_equal(stream.next_document(), other.next_document())
  count = 0
  while count < len(server.requests):  # until no more come
    count = len(server.requests)
    time.sleep(0.3)
  server.close()
  for _ in range(2 * (BLOCK // 2000) - 1):
    np.testing.assert_array_equal(stream.next_document(), other.next_document())
  blocks = [request for request in server.requests if request[1]]
  assert 3 <= len(blocks) == len(set(blocks)) < 8


def test_an_object_store(prepared, tmp_path):
  import fsspec

  folder, _ = prepared
  fsspec.filesystem("memory").put(str(folder), "/bucket/ids", recursive=True)
  here, there = (batches_of(config_of(p, tmp_path)) for p in (str(folder), "memory://bucket/ids"))
  assert_equal(take(there, 20), take(here, 20))
  for batches in (here, there):
    batches.close()


def test_prepare_writes_to_a_local_folder_only(prepared):
  from gptneo_jax.errors import UserError

  with pytest.raises(UserError, match="gs://bucket/ids: shards are written to a local folder only"):
    prepare([prepared[1], "gs://bucket/ids", "--tokenizer", "gpt2"])
