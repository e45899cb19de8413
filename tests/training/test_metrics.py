"""The files of metrics."""

import importlib.machinery
import json
import math
import os
import shutil
import subprocess
import sys
import time
import types
import uuid

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.train import run
from gptneo_jax.training import metrics
from tests.helpers.clock import Clock
from tests.helpers.events import scalars
from tests.helpers.small_runs import small_config


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
  assert [scalars(fs.cat_file(path)) for path in events] in (
    [[(1, 1.0), (2, 2.0), (3, 3.0)], [(3, 30.0)]],
    [[(3, 30.0)], [(1, 1.0), (2, 2.0), (3, 3.0)]],  # both within one second
  )


def test_an_object_store_is_written_now_and_then(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=clock, time=time.time))
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
  assert written() == (1, 1)
  clock.now += 30
  writer.write(3, {"train/loss": 3.0})
  assert written() == (3, 1)
  writer.write(4, {"train/loss": 4.0})
  writer.close()
  assert written() == (4, 1)
  (events,) = fs.glob(f"{root}/tensorboard/events.*")
  assert [step for step, _ in scalars(fs.cat_file(events))] == [1, 2, 3, 4]


class _Recorder:
  """Takes the place of a writer elsewhere; keeps the calls."""

  def __init__(self):
    self.calls = []

  def __getattr__(self, name):
    return lambda *args, **options: self.calls.append((name, args, options))


@pytest.fixture
def wandb(monkeypatch):
  """A module in the place of wandb, with its kinds of errors; a test gives it `init`."""
  module = types.ModuleType("wandb")
  module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
  module.errors = types.SimpleNamespace(CommError=type("CommError", (Exception,), {}))
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb):
  runs = []

  def init(**options):
    runs.append((options, _Recorder()))
    return runs[-1][1]

  wandb.init = init
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


def test_wandb_that_does_not_start_is_one_line(tmp_path, wandb):
  def init(**_):
    raise RuntimeError("no API key configured\nsee the manual")

  wandb.init = init
  with pytest.raises(UserError, match=r"wandb cannot be had: no API key configured$"):
    metrics.MetricWriter(tmp_path, wandb_project="neo")


# --- out of reach ---------------------------------------------------------------------------------


def _warnings(caplog) -> list[str]:
  return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", ["CommError", "ConnectionError"])
def test_without_a_network_wandb_is_kept_for_later(kind, tmp_path, wandb, caplog):
  asked = []

  def init(**options):
    asked.append(options.get("mode"))
    if not asked[-1]:
      raise {"CommError": wandb.errors.CommError, "ConnectionError": ConnectionError}[kind](
        "Run initialization has timed out after 90.0 sec.\nsee the manual"
      )
    offline = _Recorder()
    offline.dir = "wandb/offline-run-1/files"
    return offline

  wandb.init = init
  writer = metrics.MetricWriter(tmp_path, wandb_project="neo")
  writer.write(1, {"train/loss": 1.0})
  writer.close()
  assert asked == [None, "offline"]
  assert writer._run.calls == [("log", ({"train/loss": 1.0},), {"step": 1}), ("finish", (), {})]
  (said,) = _warnings(caplog)
  assert said.startswith("wandb is out of reach: Run initialization has timed out after 90.0 sec.")
  assert said.endswith("wandb sync wandb/offline-run-1")


def test_what_wandb_could_not_take_it_gets_later(tmp_path, wandb, caplog):
  taken, away = [], set()

  class Run:
    def log(self, values, step):
      if step in away:
        raise BrokenPipeError("the service is gone")
      taken.append(step)

    def finish(self):
      raise OSError("no network")

  wandb.init = lambda **_: Run()
  writer = metrics.MetricWriter(tmp_path, wandb_project="neo")
  away.update({2, 4})
  for step in range(1, 6):
    if step == 4:
      away.discard(2)
    writer.write(step, {"train/loss": step})
  assert taken == [1, 2, 3]
  writer.close()
  assert taken == [1, 2, 3]
  first, last = _warnings(caplog)
  assert first.startswith("wandb cannot be written: the service is gone. The run goes on")
  assert last == "wandb lacks 2 lines: no network"
  assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_folder_that_is_gone_for_a_while(tmp_path, caplog):
  """Lines and events both wait, and are written in their order when it is there again."""
  folder, aside = tmp_path / "run", tmp_path / "aside"
  writer = metrics.MetricWriter(folder)
  for step in range(1, 8):
    if step == 3:
      folder.rename(aside)
      folder.write_text("a file is in the way")
    if step == 6:
      folder.unlink()
      aside.rename(folder)
    writer.write(step, {"train/loss": step})
  writer.close()
  assert [line["step"] for line in _lines(folder)] == [1, 2, 3, 4, 5, 6, 7]
  (events,) = (folder / "tensorboard").glob("events.*")
  assert scalars(events.read_bytes()) == [(step, float(step)) for step in range(1, 8)]
  said = _warnings(caplog)
  assert len(said) == 4 and "metrics.jsonl cannot be written" in said[0]
  assert "Not a directory" in said[0] and "the file of TensorBoard cannot be" in said[1]
  assert said[2:] == ["metrics.jsonl is written again", "the file of TensorBoard is written again"]


def test_a_folder_that_is_made_anew(tmp_path):
  """As by a run that saves after its folder was removed: both files go on in it."""
  folder = tmp_path / "run"
  writer = metrics.MetricWriter(folder)
  writer.write(1, {"train/loss": 1})
  shutil.rmtree(folder)
  writer.write(2, {"train/loss": 2})
  folder.mkdir()
  writer.write(3, {"train/loss": 3})
  writer.close()
  assert [line["step"] for line in _lines(folder)] == [2, 3]
  assert (folder / "tensorboard").is_dir()


def test_what_waits_is_bounded(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(metrics, "_MOST_KEPT", 3)
  folder = tmp_path / "run"
  writer = metrics.MetricWriter(folder)
  folder.rename(tmp_path / "aside")
  for step in range(1, 6):
    writer.write(step, {"train/loss": step})
  (tmp_path / "aside").rename(folder)
  writer.write(6, {"train/loss": 6})
  writer.close()
  assert [line["step"] for line in _lines(folder)] == [1, 2, 3]
  assert _warnings(caplog)[-1].startswith("the file of TensorBoard lacks 3 lines")


_FULL = """
import resource, sys
from gptneo_jax.training import metrics
writer = metrics.MetricWriter(sys.argv[1])
writer.write(1, {"train/loss": 1.0})
whole = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, whole[1]))
for step in (2, 3, 4, 5):
  writer.write(step, {"train/loss": float(step), "train/grad_norm": 0.25})
print(open(sys.argv[1] + "/metrics.jsonl").read().count("\\n"), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, whole)
writer.write(6, {"train/loss": 6.0})
writer.close()
"""


@pytest.mark.processes
def test_a_disk_that_is_full_for_a_while(tmp_path):
  """The file takes a part of a line, and no more: the part is taken back."""
  done = subprocess.run(
    [sys.executable, "-c", _FULL, str(tmp_path)], env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0 and done.stdout == "2\n", done
  assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
  (events,) = (tmp_path / "tensorboard").glob("events.*")
  found = [(step, value) for step, value in scalars(events.read_bytes()) if value != 0.25]
  assert found == [(step, float(step)) for step in range(1, 7)]
  said = done.stderr.splitlines()
  assert len(said) == 4 and "metrics.jsonl cannot be written" in done.stderr
  assert "File too large" in done.stderr and "metrics.jsonl is written again" in done.stderr


def test_a_run_ends_well_without_its_trackers(tmp_path, wandb, capsys, caplog):
  """TensorBoard's folder is a file from the start; wandb takes nothing."""

  class Run:
    def log(self, values, step):
      raise RuntimeError("the service is gone")

    def finish(self):
      pass

  wandb.init = lambda **_: Run()
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "tensorboard").write_text("")
  config = small_config(tmp_path, eval_every=0, steps=20, wandb_project="neo")
  assert run(config, str(tmp_path / "run")) == 0
  assert [line["step"] for line in _lines(tmp_path / "run")] == list(range(1, 21))
  said = _warnings(caplog)
  assert len(said) == 4 and sum("cannot be written" in line for line in said) == 2
  assert "wandb lacks 20 lines: the service is gone" in said
  assert "done: step 20" in capsys.readouterr().out
