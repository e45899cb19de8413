"""Files behind a URL: tried again where that helps, checked, fetched once."""

import itertools
import threading
import time
import zlib

import numpy as np
import pytest

from gptneo_jax.data import remote_folder
from gptneo_jax.data.block_cache import BlockCache
from gptneo_jax.data.documents import DataError, warn_once
from gptneo_jax.data.file_formats import first_bytes
from gptneo_jax.data.remote_folder import Block, RemoteFolder, WholeFiles
from tests.helpers.file_server import FAULTS, FileServer

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(remote_folder, "_FIRST_WAIT", 0.001)


@pytest.fixture
def files(tmp_path):
  folder = tmp_path / "files"
  folder.mkdir()
  (folder / "a b#1.bin").write_bytes(CONTENT)
  (folder / "a.json").write_text("{}")
  return folder


@pytest.fixture
def server(files):
  with FileServer(files) as running:
    yield running


@pytest.fixture
def folder(server, tmp_path):
  return RemoteFolder(f"{server.url}/", BlockCache(str(tmp_path / "cache")))


def block(start, end, name="a b#1.bin"):
  return Block(name, zlib.crc32(CONTENT[start:end]), start, end, len(CONTENT))


def test_a_block_is_fetched_once(folder, server):
  assert folder.read(block(1000, 9000)) == CONTENT[1000:9000]
  assert folder.read(block(1000, 9000), 10, 30) == CONTENT[1010:1030]
  again = RemoteFolder(folder.url, BlockCache(folder.cache.folder.parent))
  assert again.read(block(1000, 9000), 7999) == CONTENT[8999:9000]
  assert server.requests == [("a b#1.bin", "bytes=1000-8999")]
  whole = Block("a b#1.bin", zlib.crc32(CONTENT))
  assert folder.read(whole, 5, 9) == CONTENT[5:9] and folder.read(whole) == CONTENT
  assert len(server.requests) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived(folder, server, fault, monkeypatch):
  monkeypatch.setattr(remote_folder, "_TIMEOUT", 0.2)
  server.share, server.faults = 0.4, [fault]
  for start in range(0, 100_000, 5000):
    assert folder.read(block(start, start + 5000)) == CONTENT[start : start + 5000]
  assert server.failed[fault] > 4


def test_what_stays_damaged_is_named(folder, server):
  server.share, server.faults = 1, ["damaged"]
  with pytest.raises(DataError, match=r"/a b#1\.bin: damaged: bytes 5,000 to 6,000, fetched 3 tim"):
    folder.read(block(5000, 6000))
  assert len(server.requests) == 3
  server.share = 0  # nothing of it was kept
  assert folder.read(block(5000, 6000)) == CONTENT[5000:6000]


def test_a_server_that_is_gone_is_one_line(folder, server, caplog):
  warn_once.cache_clear()
  server.share, server.faults = 1, ["503"]
  with pytest.raises(DataError, match=r"a\.json: cannot be read: 503.*Unavailable") as caught:
    folder.text("a.json")
  assert len(server.requests) == remote_folder.TRIES and "\n" not in str(caught.value)
  assert [record.message for record in caplog.records if "tried again" in record.message]
  server.close()
  with pytest.raises(DataError, match=r"a\.json: cannot be read: .*(refused|Cannot connect)"):
    folder.text("a.json", tries=2)


def test_what_another_try_does_not_change_is_tried_once(folder, server):
  with pytest.raises(FileNotFoundError):
    folder.text("none.json")
  with pytest.raises(DataError, match=r"none\.bin: there is no such file"):
    folder.read(block(0, 10, "none.bin"))
  longer = Block("a b#1.bin", 0, 200_000, 200_010, 300_000)
  with pytest.raises(DataError, match=r"a b#1\.bin: cannot be read: 416"):
    folder.read(longer)
  server.ranges = False
  with pytest.raises(DataError, match="gives the whole file where a part is asked for"):
    folder.read(block(0, 10))
  assert len(server.requests) == 4


def test_waits_double_with_chance(monkeypatch):
  waits = []
  monkeypatch.setattr(remote_folder, "_FIRST_WAIT", 0.5)
  monkeypatch.setattr(time, "sleep", waits.append)
  for number in range(1, 11):
    remote_folder._wait(number)
  bounds = [min(30, 0.5 * 2**n) for n in range(10)]
  assert all(most / 2 <= wait <= most for wait, most in zip(waits, bounds))
  assert len({wait / most for wait, most in zip(waits, bounds)}) > 5


def test_blocks_are_fetched_ahead_in_threads_and_once(folder, server):
  server.share, server.faults = 1, ["slow"]
  blocks = [block(start, start + 1000) for start in range(0, 32_000, 1000)]
  began = time.monotonic()
  folder.ahead(blocks)
  for one in blocks:
    assert folder.read(one) == CONTENT[one.start : one.end]
  assert time.monotonic() - began < 0.7 * 0.4 * len(blocks)
  assert len(server.requests) == len(blocks)
  folder.ahead([block(0, 10, "none.bin"), block(50_000, 51_000)])  # a failure ends no thread
  for _ in range(100):
    if ("a b#1.bin", "bytes=50000-50999") in server.requests:
      break
    time.sleep(0.05)
  assert folder.read(block(50_000, 51_000)) == CONTENT[50_000:51_000]
  assert all(thread.is_alive() for thread in folder._threads)


def test_many_readers_of_one_block(folder, server):
  server.share, server.faults = 1, ["slow"]
  found = []
  threads = [
    threading.Thread(target=lambda: found.append(folder.read(block(0, 900), 1, 5)))
    for _ in range(12)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [CONTENT[1:5]] * 12 and len(server.requests) == 1


def test_whole_files_for_readers(folder, server):
  files = WholeFiles(folder, {"a b#1.bin": zlib.crc32(CONTENT)})
  (path,) = files.paths
  assert path == f"{server.url}/a b#1.bin" and files.size(path) == 0
  with files.open(path, "rb") as file:
    assert first_bytes(file) == CONTENT[:8000] and file.read() == CONTENT


def test_an_object_store(tmp_path):
  """Here that of fsspec in memory; nothing is listed."""
  import fsspec

  store = fsspec.filesystem("memory")
  store.pipe("/bucket/x.bin", CONTENT)
  folder = RemoteFolder("memory://bucket", BlockCache(str(tmp_path)))
  assert folder.read(block(7, 70, "x.bin")) == CONTENT[7:70]
  with pytest.raises(FileNotFoundError):
    folder.text("y.json")
  store.pipe("/bucket/x.bin", b"other")
  assert folder.read(block(7, 70, "x.bin")) == CONTENT[7:70]


def test_keys_tell_folders_files_and_contents_apart(tmp_path):
  cache = BlockCache(str(tmp_path))
  folders = [RemoteFolder(f"memory://{name}", cache) for name in ("a", "b")]
  blocks = [Block("x", 1, 0, 5, 9), Block("y", 1, 0, 5, 9), Block("x", 2, 0, 5, 9),
            Block("x", 1, 5, 9, 9), Block("x", 1)]  # fmt: skip
  keys = {one._key(block) for one, block in itertools.product(folders, blocks)}
  assert len(keys) == 10


def test_an_unknown_scheme():
  with pytest.raises(DataError, match="nowhere://x: "):
    remote_folder.remote_folder("nowhere://x")
