"""The files of metrics."""

import importlib.machinery
import json
import math
import struct
import sys
import types
import uuid

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.training import metrics
from tests.helpers.clock import Clock


def _lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_one_object_with_step_first(tmp_path):
  writer = metrics.MetricWriter(tmp_path)
  writer.write(1, {"train/loss": jnp.float32(2.5), "perf/mfu": np.float64(0.5)})
  # On disk at once, not at close.
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text == '{"step": 1, "train/loss": 2.5, "perf/mfu": 0.5}\n'
  writer.write(2, {"train/loss": math.nan, "train/grad_norm": math.inf, "eval/loss/Pile-CC": 3})
  writer.close()
  assert _lines(tmp_path)[1] == {
    "step": 2,
    "train/loss": None,
    "train/grad_norm": None,
    "eval/loss/Pile-CC": 3.0,
  }
  assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_resumed_run_has_each_step_once(tmp_path, caplog):
  writer = metrics.MetricWriter(tmp_path)
  for step in range(1, 6):
    writer.write(step, {"train/loss": step})
  writer.close()
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 6, "train/lo')  # killed here
  writer = metrics.MetricWriter(tmp_path, resume_step=3)
  assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3]
  writer.write(4, {"train/loss": 40})
  writer.close()
  assert [line["train/loss"] for line in _lines(tmp_path)] == [1, 2, 3, 40]
  assert not caplog.records
  assert not (tmp_path / "metrics.jsonl.tmp").exists()


@pytest.mark.parametrize("tail", ['{"step": 3', '{"step": 3, "train/loss": 1.0}', "[1]\n", "\n"])
def test_torn_last_lines(tmp_path, tail):
  whole = '{"step": 2, "train/loss": 1.0}\n'
  (tmp_path / "metrics.jsonl").write_text(whole + tail)
  metrics.MetricWriter(tmp_path, resume_step=3).close()
  kept = tail + "\n" if tail.endswith("}") else ""  # only its newline was missing
  assert (tmp_path / "metrics.jsonl").read_text() == whole + kept


def test_a_bad_line_in_the_middle_is_named(tmp_path, caplog):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  metrics.MetricWriter(tmp_path, resume_step=2).close()
  assert _lines(tmp_path) == [{"step": 1}, {"step": 2}]
  assert "metrics.jsonl line 2 is not a metrics line" in caplog.text


def test_a_run_from_scratch_keeps_nothing(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
  metrics.MetricWriter(tmp_path).close()
  assert _lines(tmp_path) == []


def test_disabled_writes_nothing(tmp_path):
  writer = metrics.MetricWriter(tmp_path / "run", enabled=False)
  writer.write(1, {"train/loss": 1.0})
  writer.close()
  assert not (tmp_path / "run").exists()


def test_an_object_store_gets_the_whole_files():
  """Lines and TensorBoard's events alike, through fsspec alone."""
  folder = f"memory://metrics-test/{uuid.uuid4().hex}"
  writer = metrics.MetricWriter(folder)
  for step in (1, 2, 3):
    writer.write(step, {"train/loss": step})
  writer.close()
  writer = metrics.MetricWriter(folder, resume_step=2)
  writer.write(3, {"train/loss": 30})
  writer.close()
  with fsspec.open(f"{folder}/metrics.jsonl", "r") as file:
    assert [json.loads(line)["train/loss"] for line in file] == [1, 2, 30]
  fs, root = fsspec.core.url_to_fs(folder)
  events = sorted(fs.glob(f"{root}/tensorboard/events.*"))
  # The second process says from which step on the first one's are void, and then its own.
  assert [_scalars(fs.cat_file(path)) for path in events] in (
    [[(1, 1.0), (2, 2.0), (3, 3.0)], [(3, 30.0)]],
    [[(3, 30.0)], [(1, 1.0), (2, 2.0), (3, 3.0)]],  # both within one second
  )


def _scalars(data: bytes) -> list[tuple[int, float]]:
  """(step, value) of each scalar in a file of events, whose records are length, checksum, data,
  checksum."""
  from tensorboardX.proto.event_pb2 import Event

  found, at = [], 0
  while at < len(data):
    (size,) = struct.unpack("<Q", data[at : at + 8])
    event = Event.FromString(data[at + 12 : at + 12 + size])
    found += [(event.step, value.simple_value) for value in event.summary.value]
    at += 12 + size + 4
  return found


def test_an_object_store_is_written_now_and_then(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=clock))
  folder = f"memory://metrics-test/{uuid.uuid4().hex}"
  writer = metrics.MetricWriter(folder)
  fs, root = fsspec.core.url_to_fs(folder)

  def written() -> tuple[int, int]:
    """Lines, and files of events."""
    lines = fs.cat_file(f"{root}/metrics.jsonl").count(b"\n")
    return lines, len(fs.glob(f"{root}/tensorboard/events.*"))

  writer.write(1, {"train/loss": 1.0})
  clock.now += 5
  writer.write(2, {"train/loss": 2.0})
  assert written() == (1, 0)
  clock.now += 30
  writer.write(3, {"train/loss": 3.0})
  assert written() == (3, 1)
  writer.write(4, {"train/loss": 4.0})
  writer.close()
  assert written() == (4, 1)
  (events,) = fs.glob(f"{root}/tensorboard/events.*")
  assert [step for step, _ in _scalars(fs.cat_file(events))] == [1, 2, 3, 4]


class _Recorder:
  """Takes the place of a writer elsewhere; keeps the calls."""

  def __init__(self):
    self.calls = []

  def __getattr__(self, name):
    return lambda *args, **options: self.calls.append((name, args, options))


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
  runs = []

  def init(**options):
    runs.append((options, _Recorder()))
    return runs[-1][1]

  module = types.ModuleType("wandb")
  module.init, module.__spec__ = init, importlib.machinery.ModuleSpec("wandb", None)
  monkeypatch.setitem(sys.modules, "wandb", module)
  for resume_step in (None, 3, 0, None):  # 0: saved at step 1, whose line is written anew
    writer = metrics.MetricWriter(
      tmp_path / "run", resume_step=resume_step, wandb_project="neo", run={"config": {"steps": 9}}
    )
    writer.write((resume_step or 0) + 1, {"train/loss": 1.0})
    writer.close()
  first, *resumed, anew = (options["id"] for options, _ in runs)
  assert resumed == [first, first] and first != anew
  assert all(options["config"] == {"config": {"steps": 9}} for options, _ in runs)
  assert runs[0][0]["project"] == "neo" and runs[0][0]["name"] == "run"
  assert runs[0][1].calls == [("log", ({"train/loss": 1.0},), {"step": 1}), ("finish", (), {})]


def test_wandb_missing_is_said_before_anything_is_made(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  metrics.check_wandb("")
  with pytest.raises(UserError, match="wandb_project is 'neo', and wandb is not installed: pip"):
    metrics.check_wandb("neo")
  with pytest.raises(UserError):
    metrics.MetricWriter(tmp_path / "run", wandb_project="neo")
  assert not (tmp_path / "run").exists()


def test_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
  def init(**_):
    raise RuntimeError("no API key configured\nsee the manual")

  module = types.ModuleType("wandb")
  module.init, module.__spec__ = init, importlib.machinery.ModuleSpec("wandb", None)
  monkeypatch.setitem(sys.modules, "wandb", module)
  with pytest.raises(UserError, match=r"wandb cannot be had: no API key configured$"):
    metrics.MetricWriter(tmp_path, wandb_project="neo")
