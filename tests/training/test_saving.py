"""Saves that fail at the end of a run. Those before it: `tests/integration/test_crashes.py`."""

import resource
import signal
import types

import pytest

from gptneo_jax.checkpoints.step_folders import CheckpointError
from gptneo_jax.train import run
from gptneo_jax.training import saving
from tests.helpers import small_runs


@pytest.fixture
def full_at_the_end(monkeypatch):
  """The disk is full when the last step is saved. Calling it makes room."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  save = saving.Saving.__call__

  def save_on_full_disk(self, reports, step, state, line):
    if step == 6 and not room:
      resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    save(self, reports, step, state, line)

  def make_room():
    room.append(True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  room = []
  monkeypatch.setattr(saving.Saving, "__call__", save_on_full_disk)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  yield make_room
  make_room()
  signal.signal(signal.SIGXFSZ, before)


def test_the_last_save_is_made_again(tmp_path, monkeypatch, capsys, full_at_the_end):
  pauses = []

  def sleep(seconds):
    pauses.append(seconds)
    if len(pauses) == 2:
      full_at_the_end()

  clock = types.SimpleNamespace(monotonic=saving.time.monotonic, sleep=sleep)
  monkeypatch.setattr(saving, "time", clock)
  assert run(small_runs.small_config(tmp_path), str(tmp_path / "run")) == 0
  assert pauses == [0, 10]
  assert small_runs.evaluated(tmp_path / "run", 6)["eval/loss"] > 0
  said = capsys.readouterr().out
  assert said.count("File too large") == 2 and "done: step 6" in said


def test_a_disk_that_stays_full_ends_it(tmp_path, monkeypatch, full_at_the_end):
  monkeypatch.setattr(saving, "_PAUSES", (0,))
  with pytest.raises(CheckpointError, match="File too large"):
    run(small_runs.small_config(tmp_path), str(tmp_path / "run"))
  full_at_the_end()  # now: pytest may be writing to a file too
