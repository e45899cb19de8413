"""Stopped anywhere and started again, a run ends as the one that was never stopped, bit for bit."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import train_runs

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return train_runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def settings(corpus, tmp_path_factory):
  """Dropout on, so that the random state counts; a save at every step, so that kills hit saves; and
  an evaluation, which a run that was stopped still owes. What may be left open is chosen at each
  start anew."""
  return {
    "data__source": "jsonl",
    "data__path": corpus,
    "data__validation_fraction": 0.1,
    "steps": 40,
    "schedule__decay_steps": 40,
    "checkpoint_every": 1,
    "eval_every": 1,
    "model__resid_dropout": 0.1,
    "grad_accumulation": 0,
    "model__remat": "auto",
  }


@pytest.fixture(scope="module")
def whole_run(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  result = train_runs.train(workdir, **settings | {"grad_accumulation": 1, "model__remat": "none"})
  assert result.returncode == 0, result.stderr
  return workdir


def assert_same_run(workdir, whole_run):
  train_runs.assert_bitwise_equal(train_runs.arrays(workdir, 40), train_runs.arrays(whole_run, 40))
  lines, expected = train_runs.metrics(workdir), train_runs.metrics(whole_run)
  assert [line["step"] for line in lines] == list(range(1, 41))  # each step is there once
  exact = [key for key in expected[-1] if not key.startswith("perf/")]
  assert "eval/bits_per_byte/Prose" in exact
  for line, other in zip(lines, expected):
    assert all(line.get(key) == other.get(key) for key in exact)


def steps_done(workdir) -> int:
  file = workdir / "metrics.jsonl"
  return file.read_text().count("\n") if file.exists() else 0


def start(workdir, settings) -> subprocess.Popen:
  return subprocess.Popen(
    train_runs.train_command(workdir, **settings),
    cwd=train_runs.REPOSITORY, env=train_runs.environment(),
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def wait_for_step(process: subprocess.Popen, workdir, step: int) -> None:
  while process.poll() is None and steps_done(workdir) < step:
    time.sleep(0.01)


def test_stopped_by_signals(settings, whole_run, tmp_path):
  """By Ctrl-C, then by SIGTERM, wherever they come; the line of the first is the command."""
  settings = settings | {"checkpoint_every": 0}  # what a signal saves is all there is
  for step, sent, status in ((7, signal.SIGINT, 130), (20, signal.SIGTERM, 143)):
    process = start(tmp_path, settings)
    wait_for_step(process, tmp_path, step)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert f"stopped by {sent.name}, saved at step" in stdout
    assert stdout.rstrip().endswith(shlex.join(train_runs.train_command(tmp_path, **settings)[3:]))
  assert steps_done(tmp_path) < 40
  result = train_runs.train(tmp_path, **settings)
  assert result.returncode == 0, result.stderr
  assert "resuming from step" in result.stdout
  assert_same_run(tmp_path, whole_run)


# The program with a store that takes half a minute for each save.
SLOW_STORE = """
import time, orbax.checkpoint as ocp
from gptneo_jax import train
genuine = ocp.CheckpointManager.wait_until_finished
def slow(self):
  if self.latest_step() is not None or saving:
    print("waits for the store", flush=True)
    time.sleep(30)
  return genuine(self)
saving, save = [], ocp.CheckpointManager.save
def noted(self, *arguments, **options):
  saving.append(1)
  return save(self, *arguments, **options)
ocp.CheckpointManager.save, ocp.CheckpointManager.wait_until_finished = noted, slow
train.main()
"""


def test_a_second_interrupt_ends_a_run_that_is_saving(settings, whole_run, tmp_path):
  settings = settings | {"checkpoint_every": 0, "eval_every": 0}
  command = train_runs.train_command(tmp_path, **settings)
  process = subprocess.Popen(
    [sys.executable, "-c", SLOW_STORE, *command[3:]],
    cwd=train_runs.REPOSITORY, env=train_runs.environment(),
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  wait_for_step(process, tmp_path, 5)
  process.send_signal(signal.SIGINT)
  while "waits for the store" not in process.stdout.readline():
    assert process.poll() is None
  start_of_end = time.monotonic()
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGINT and time.monotonic() - start_of_end < 10
  result = train_runs.train(tmp_path, **settings)  # whatever the save came to
  assert result.returncode == 0, result.stderr
  train_runs.assert_bitwise_equal(train_runs.arrays(tmp_path, 40), train_runs.arrays(whole_run, 40))
