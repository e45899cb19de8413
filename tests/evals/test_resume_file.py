"""Files that an evaluation resumes from."""

import json

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.evals.atomic_file import write_atomically
from gptneo_jax.evals.resume_file import ResumeFile, ResumeLog


def test_state_keeps_every_float(tmp_path):
  """A resumed sum ends in the same bits; no other file is left in the folder."""
  state = {"sums": [0.1 + 0.2, 1e-300, 2**53 + 2.0], "batches": 3}
  written = ResumeFile(tmp_path / "r.partial", {"stride": None, "limit": 2}, seconds=0)
  assert written.read() is None
  written.write_if_due(state)
  assert ResumeFile(tmp_path / "r.partial", {"stride": None, "limit": 2}).read() == state
  assert [path.name for path in tmp_path.iterdir()] == ["r.partial"]
  written.remove()
  assert written.read() is None and not list(tmp_path.iterdir())


def test_not_written_more_often_than_asked(tmp_path):
  file = ResumeFile(tmp_path / "r.partial", {}, seconds=3600)
  file.write_if_due({"a": 1})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"limit": 3}, {}, {"limit": 2, "stride": 1}])
def test_other_settings(tmp_path, settings, capsys):
  path = tmp_path / "r.partial"
  ResumeFile(path, {"limit": 2}, seconds=0).write_if_due({"a": 1})
  assert ResumeFile(path, settings).read() is None
  assert f"{path} has other settings" in capsys.readouterr().out


def test_files_that_cannot_be_written(tmp_path):
  with pytest.raises(UserError, match=r"r\.partial cannot be written: No such file"):
    ResumeFile(tmp_path / "no" / "r.partial", {}, seconds=0).write_if_due({})
  with pytest.raises(UserError, match="cannot be written"), ResumeLog(str(tmp_path / "no" / "l")):
    pass


def test_atomic_write_replaces_or_leaves(tmp_path, monkeypatch):
  """A write that fails leaves the old content."""
  path = tmp_path / "a.json"
  write_atomically(path, "old")
  write_atomically(path, "ção")
  assert path.read_text(encoding="utf-8") == "ção"

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(UserError, match=r"a\.json cannot be written: No space left"):
    write_atomically(path, "new")
  assert path.read_text(encoding="utf-8") == "ção"


def test_log_keeps_finished_items_and_drops_a_line_that_was_cut_off(tmp_path):
  path = tmp_path / "log.jsonl"
  with ResumeLog(str(path)) as log:
    log.add({"a": 1, "b": ["x", None]})
  with path.open("ab") as file:
    file.write(b'{"key": "c", "val')
  with ResumeLog(str(path)) as log:
    assert log["a"] == 1 and log["b"] == ["x", None] and "c" not in log
    log.add({"c": 2})
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows == [
    {"key": "a", "value": 1}, {"key": "b", "value": ["x", None]}, {"key": "c", "value": 2}
  ]  # fmt: skip


def test_log_in_memory():
  with ResumeLog(None) as log:
    log.add({"a": 1})
    assert "a" in log and log["a"] == 1
