"""Traces of the profiler, asked for while a run goes on."""

import os
import signal
import types

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from gptneo_jax.config import ModelConfig
from gptneo_jax.train import run
from gptneo_jax.training import run_config, trace
from tests.helpers.clock import Clock
from tests.helpers.small_runs import small_config


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(trace, "time", types.SimpleNamespace(monotonic=clock))
  return clock


@pytest.fixture
def made(tmp_path, clock):
  """Makes a trace's watch over a folder, with what it says; closed at the end."""
  opened = []

  def make(**profile):
    config, said = run_config.base(ModelConfig()), []
    config.profile.update(profile)
    opened.append(trace.Trace(epath.Path(tmp_path), config.profile, said.append))
    return opened[-1], said

  yield make
  for one in opened:
    one.close()


def traced_steps(watch, clock, steps: range) -> list[int]:
  """The steps before which a trace is being made."""
  found = []
  for step in steps:
    clock.now += 2
    watch.before(step, (step - 1, {"loss": jnp.float32(1.0)}, {}))
    if watch._traced is not None:
      found.append(step)
  return found


def files(folder) -> int:
  return len(list((folder / "profile").rglob("*.xplane.pb")))


@pytest.mark.parametrize(
  ("text", "expected"), [("", [3, 4, 5, 6, 7]), ("2\n", [3, 4]), ("many", [3, 4, 5, 6, 7])]
)
def test_a_file_asks_for_the_next_steps(text, expected, made, clock, tmp_path):
  watch, said = made()
  assert traced_steps(watch, clock, range(1, 3)) == []
  (tmp_path / "profile_now").write_text(text)
  assert traced_steps(watch, clock, range(3, 12)) == expected
  assert files(tmp_path) == 1 and not (tmp_path / "profile_now").exists()
  assert said[-1].startswith(f"steps 3 to {expected[-1]} are traced in {tmp_path / 'profile'}; to")
  assert f"xprof --logdir {tmp_path / 'profile'}" in said[-1]
  assert (text == "many") == ("profile_now holds 'many', which is no number of steps" in said[0])


def test_the_file_is_looked_for_once_a_second(made, clock, tmp_path):
  watch, _ = made()
  watch.before(1, None)
  (tmp_path / "profile_now").touch()
  clock.now += 0.9
  watch.before(2, None)
  assert (tmp_path / "profile_now").exists()
  clock.now += 0.2
  watch.before(3, None)
  assert not (tmp_path / "profile_now").exists()


def test_a_signal_asks_too(made, clock, tmp_path):
  before = signal.getsignal(signal.SIGUSR2)
  watch, _ = made()
  os.kill(os.getpid(), signal.SIGUSR2)
  assert traced_steps(watch, clock, range(1, 10)) == [1, 2, 3, 4, 5]
  assert files(tmp_path) == 1
  watch.close()
  assert signal.getsignal(signal.SIGUSR2) == before


def test_the_steps_of_the_config_come_first(made, clock, tmp_path):
  (tmp_path / "profile_now").write_text("1")
  watch, said = made(first_step=2, steps=2)
  clock.now -= 2  # nothing is looked for before step 2
  watch._looked = clock.now + 2
  assert traced_steps(watch, clock, range(1, 8)) == [2, 3, 4]
  assert len(said) == 2


def test_a_trace_that_cannot_be_made_is_a_line(made, clock, tmp_path):
  """Another one is being made: JAX has one at a time."""
  watch, said = made(first_step=1, steps=3)
  jax.profiler.start_trace(str(tmp_path / "another"))
  try:
    assert traced_steps(watch, clock, range(1, 6)) == []
  finally:
    jax.profiler.stop_trace()
  assert len(said) == 1 and said[0].startswith("no trace: ")


def test_a_request_that_cannot_be_read_is_one_line(made, clock, tmp_path):
  watch, said = made()
  (tmp_path / "profile_now").mkdir()
  assert traced_steps(watch, clock, range(1, 6)) == []
  assert len(said) == 1 and "profile_now is not looked at any more" in said[0]


def test_a_run_is_traced(tmp_path, capsys):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "profile_now").write_text("2")
  assert run(small_config(tmp_path, eval_every=0), str(tmp_path / "run")) == 0
  assert "steps 1 to 2 are traced in" in capsys.readouterr().out
  assert files(tmp_path / "run") == 1 and not (tmp_path / "run" / "profile_now").exists()
