"""The cache on disk: bounded, checked, shared by processes and threads, and not of other files."""

import pathlib
import threading
import zlib

import numpy as np
import pytest

from gptneo_jax.data.block_cache import BlockCache
from gptneo_jax.data.documents import DataError, warn_once

SIZE = 1000


def block(number):
  content = np.random.default_rng(number).bytes(SIZE)
  return f"{number:032x}", content, zlib.crc32(content)


def cache_of(folder, blocks=20):
  return BlockCache(str(folder), blocks * SIZE / 2**30)


def there(cache):
  return {int(path.name, 16) for path in cache.folder.glob("*/*") if "part" not in path.name}


def size_of(cache):
  return sum(path.stat().st_size for path in cache.folder.glob("*/*"))


def test_what_is_written_is_read(tmp_path):
  cache = cache_of(tmp_path)
  key, content, crc = block(1)
  assert cache.read(key, crc) is None
  cache.write(key, content)
  for other in (cache, cache_of(tmp_path)):  # the second has to check it
    assert other.read(key, crc, 5, 70) == content[5:70]
    assert other.read(key, crc, 990, 1000) == content[990:]
    assert other.read(key, crc) == content


def test_what_was_read_longest_ago_leaves(tmp_path):
  cache = cache_of(tmp_path)
  for number in range(100):
    key, content, _ = block(number)
    cache.write(key, content)
    cache.read(*[block(3)[n] for n in (0, 2)])
    assert size_of(cache) <= cache.limit
  left = there(cache)
  assert {3, 99, 98, 97} <= left and not left & set(range(60)) - {3}
  assert len(left) > 15
  assert len(cache._checked) < 40


@pytest.mark.parametrize("damage", ["a bit", "cut off", "empty", "gone"])
def test_a_damaged_block_is_not_read(tmp_path, damage):
  cache = cache_of(tmp_path)
  key, content, crc = block(7)
  cache.write(key, content)
  (path,) = cache.folder.glob(f"*/{key}")
  if damage == "a bit":
    path.write_bytes(content[:500] + bytes([content[500] ^ 8]) + content[501:])
  elif damage == "gone":
    path.unlink()
  else:
    path.write_bytes(content[:900] if damage == "cut off" else b"")
  assert cache_of(tmp_path).read(key, crc, 0, 10) is None
  if damage != "a bit":  # which this process has checked before
    assert cache.read(key, crc, 890, 910) is None
  cache.write(key, content)
  assert cache_of(tmp_path).read(key, crc) == content


def test_other_files_of_the_folder_stay(tmp_path):
  cache = cache_of(tmp_path, blocks=4)
  cache.check_folder()
  (cache.folder / "ab").mkdir()
  mine = cache.folder / "ab" / "thesis.tex"
  mine.write_bytes(bytes(100 * SIZE))
  aside = cache.folder / "aside" / f"{'0' * 32}.12.3.part"  # of a process that was killed
  aside.write_bytes(bytes(3 * SIZE))
  for number in range(30):
    cache.write(*block(number)[:2])
  assert mine.exists() and not aside.exists()
  mine.unlink()
  assert len(there(cache)) in (2, 3)


def test_threads_and_several_caches_share_a_folder(tmp_path):
  """None reads anything but what was written, and the limit holds as it is promised."""
  caches, wrong = [cache_of(tmp_path) for _ in range(4)], []

  def use(cache, seed):
    rng = np.random.default_rng(seed)
    for number in rng.integers(0, 60, 300):
      key, content, crc = block(int(number))
      found = cache.read(key, crc, 10, 20)
      if found is None:
        cache.write(key, content)
      elif found != content[10:20]:
        wrong.append(number)

  threads = [threading.Thread(target=use, args=(cache, n)) for n, cache in enumerate(caches * 2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []
  assert 10 * SIZE < size_of(caches[0]) <= (1 + 8 / 16) * caches[0].limit


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
  (tmp_path / "file").write_text("")
  cache = cache_of(tmp_path / "file")
  with pytest.raises(DataError, match=r"file/token_blocks: .*Not a directory.*data\.cache"):
    cache.check_folder()
  warn_once.cache_clear()
  for number in range(3):  # and in the middle of a run it is said once
    cache.write(*block(number)[:2])
  assert [record.message for record in caplog.records] == [
    f"{cache.folder}: blocks cannot be kept (Not a directory), and are fetched again"
  ]


def test_the_folder_is_that_of_the_users_caches(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/x")
  assert BlockCache().folder == pathlib.Path("/x/gptneo_jax/token_blocks")
  assert BlockCache("~/y").folder == pathlib.Path("~/y/token_blocks").expanduser()
