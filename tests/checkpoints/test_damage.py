"""A damaged checkpoint is renamed and the one before it taken (manager.py, reading.py)."""

import logging
import shutil

import pytest

from gptneo_jax.checkpoints import manager
from gptneo_jax.checkpoints.step_folders import CheckpointError, saved_steps
from tests.helpers.checkpoint_runs import abstract, assert_is_step, restore, save, state_of


def _halved(content):
  return content[: len(content) // 2]


def _flipped(content):
  """One bit of one byte is another: the file has its length."""
  place = len(content) * 2 // 3
  return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def _files(step_folder):
  """All files but the marks of success, which say nothing on a local disk, and the optimizer's,
  which are like those of the parameters."""
  files = [str(p.relative_to(step_folder)) for p in step_folder.rglob("*") if p.is_file()]
  return sorted(f for f in files if "commit_success" not in f and not f.startswith("optimizer"))


def test_a_damaged_checkpoint_is_moved_aside(two_steps, tmp_path, caplog):
  """Each file of checkpoint 2 in turn cut in half, changed in one bit, or removed: 2 is complete,
  or 1 is restored. Of the items of a run no damage is overlooked."""
  fell_back = 0
  for name in _files(two_steps / "2"):
    for change in (_halved, _flipped, None):
      folder = tmp_path / f"{change and change.__name__}-{name.replace('/', '-')}"
      shutil.copytree(two_steps, folder)
      target = folder / "2" / name
      if change:
        target.write_bytes(change(target.read_bytes()))
      else:
        target.unlink()
      caplog.clear()
      restored = restore(folder)
      assert_is_step(restored, restored.step)
      assert restored.step == 1 or not name.startswith(("params/", "data/")), (change, name)
      if restored.step == 1:
        fell_back += 1
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "checkpoint 2 is damaged" in record.getMessage()
        assert (folder / "2.damaged").is_dir() and not (folder / "2").exists()
        assert saved_steps(folder) == [1]
      else:
        assert saved_steps(folder) == [1, 2]
      shutil.rmtree(folder)
  assert fell_back >= 20


def test_damaged_everywhere(two_steps, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two_steps, folder)
  for step in (1, 2):
    shutil.rmtree(folder / str(step) / "optimizer")
  (folder / "2.damaged").mkdir()  # from an earlier time; must not be overwritten
  with pytest.raises(CheckpointError, match=r"all 2 checkpoints in .* are damaged"):
    restore(folder)
  assert (folder / "2.damaged.1" / "params").is_dir() and (folder / "1.damaged").is_dir()
  assert restore(folder) is None


def test_a_step_moved_aside_can_be_saved_again(two_steps, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two_steps, folder)
  shutil.rmtree(folder / "2" / "optimizer")
  (folder / "1" / "metrics" / "metrics").write_text('{"eval/lo')  # only costs 1 its rank
  checkpointer = manager.Checkpointer(folder)
  assert checkpointer.restore(*map(abstract, state_of())).step == 1
  assert save(checkpointer, 2, {"eval/loss": 2.0})
  checkpointer.close()
  assert_is_step(restore(folder), 2)
