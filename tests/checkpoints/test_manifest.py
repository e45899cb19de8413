"""The list of a checkpoint's files: it is complete, and no change of them passes unseen."""

import json
import shutil

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptneo_jax.checkpoints import lazy, manifest
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.checkpoints.step_folders import CheckpointError
from tests.helpers.checkpoint_runs import abstract, state_of


def test_each_checkpoint_has_one(two_steps):
  content = manifest.read(epath.Path(two_steps / "2"))
  there = {
    path.relative_to(two_steps / "2").as_posix()
    for item in manifest.ITEMS
    for path in (two_steps / "2" / item).rglob("*")
    if path.is_file()
  }
  assert set(content["files"]) <= there
  assert all("commit_success" in name for name in there - set(content["files"]))
  assert {name.split("/")[0] for name in there} == set(manifest.ITEMS)
  assert not manifest.is_permanent(epath.Path(two_steps / "2"))
  manifest.check(epath.Path(two_steps / "2"))


@settings(
  deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_is_found(two_steps, tmp_path, data):
  source = two_steps / "2"
  names = sorted(
    name for name, entry in manifest.read(epath.Path(source))["files"].items() if entry["bytes"]
  )
  name = data.draw(st.sampled_from(names))
  content = bytearray((source / name).read_bytes())
  place = data.draw(st.integers(0, len(content) - 1))
  content[place] ^= 1 << data.draw(st.integers(0, 7))
  folder = tmp_path / "2"
  shutil.copytree(source, folder, dirs_exist_ok=True)
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=f"^{name} has another checksum"):
    manifest.check(epath.Path(folder))
  # Each of several hosts checks a part; one of them finds it.
  found = []
  for number in range(3):
    try:
      manifest.check(epath.Path(folder), share=(number, 3))
    except ValueError:
      found.append(number)
  assert len(found) == 1


def test_whoever_reads_it_is_told(two_steps, tmp_path):
  """Each way to load parameters, of a file of right length."""
  folder = tmp_path / "run"
  shutil.copytree(two_steps, folder)
  files = [path for path in (folder / "2" / "params").rglob("d/*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[-7] ^= 1
  largest.write_bytes(content)
  for read in (
    lambda: restore_params(folder, abstract(state_of()[0])),
    lambda: lazy.open_params(folder),
  ):
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* is damaged: params/.* checksum"):
      read()
  assert restore_params(folder, abstract(state_of()[0]), 1)


@pytest.mark.parametrize(
  "content",
  [
    "", "[]", '{"files": 3}', '{"files": {"params/a": 3}}', "\xff", "[" * 99999,
    '{"files": {"params/../../../dev/zero": {"bytes": 3}}}',
  ],
)  # fmt: skip
def test_a_damaged_manifest(content, two_steps, tmp_path):
  folder = tmp_path / "2"
  shutil.copytree(two_steps / "2", folder)
  (folder / manifest.MANIFEST).write_text(content, encoding="latin-1")
  with pytest.raises(ValueError, match=r"manifest\.json"):
    manifest.check(epath.Path(folder))
  assert not manifest.is_permanent(epath.Path(folder))
  (folder / manifest.MANIFEST).write_text('{"files": {"params": {"bytes": 3}}}')  # a folder
  with pytest.raises(ValueError, match="params is missing"):
    manifest.check(epath.Path(folder))


def test_a_checkpoint_without_one_is_taken(two_steps, tmp_path):
  """One of an older version, or of another program."""
  folder = tmp_path / "2"
  shutil.copytree(two_steps / "2", folder)
  (folder / manifest.MANIFEST).unlink()
  manifest.check(epath.Path(folder))
  assert not manifest.is_of_earlier_interval(epath.Path(folder), 1.0)


def test_what_it_says(tmp_path):
  folder = epath.Path(tmp_path)
  (folder / "params").mkdir()
  (folder / "params" / "a").write_text("abc")
  manifest.write(folder, permanent=True)
  entry = json.loads((folder / manifest.MANIFEST).read_text())["files"]["params/a"]
  assert entry == {"bytes": 3, "crc32c": 0x364B3FB7}  # of "abc": the CRC-32C of iSCSI and TFRecord
  assert manifest.is_permanent(folder)
