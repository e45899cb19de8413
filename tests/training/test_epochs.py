"""Passes over the data as steps: as many evaluations as epochs, schedules in steps."""

import math

import pytest
from hypothesis import given, strategies
from ml_collections import ConfigDict

from gptneo_jax.checkpoints.step_folders import saved_steps
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.train import run
from gptneo_jax.training import epochs, run_config
from tests.helpers.small_runs import lines, small_config


def config_of(**changes) -> ConfigDict:
  changes = {name.replace("__", "."): value for name, value in changes.items()}
  return run_config.apply(run_config.base(ModelConfig()), changes)


def test_what_is_in_steps_stays_as_it_is():
  config = config_of()
  assert epochs.settle_steps(config, 7.5) is config


@pytest.mark.parametrize(
  ("number", "steps_per_epoch", "steps"),
  [(3.0, 10.4, 32), (1.1, 10, 11), (0.5, 10, 5), (2.0, 0.2, 1), (0.1 * 3, 10, 3), (1.0, 10.01, 11)],
)
def test_steps_of_epochs(number, steps_per_epoch, steps):
  assert epochs.settle_steps(config_of(epochs=number), steps_per_epoch).steps == steps


@given(strategies.integers(1, 20), strategies.integers(1, 5000), strategies.integers(1, 32))
def test_as_many_evaluations_as_epochs(number, rows, batch_size):
  """Fewer where an epoch is fewer steps than there are epochs: steps are whole."""
  steps_per_epoch = rows / batch_size
  settled = epochs.settle_steps(config_of(epochs=float(number), every_epoch=True), steps_per_epoch)
  every = settled.eval_every
  assert settled.checkpoint_every == every == math.ceil(steps_per_epoch)
  evaluations = len({*range(every, settled.steps + 1, every), settled.steps})
  assert evaluations <= number
  if steps_per_epoch >= number:
    assert evaluations == number


def test_epochs_of_a_run_in_steps():
  settled = epochs.settle_steps(config_of(steps=70, every_epoch=True), 12.0)
  assert (settled.steps, settled.eval_every, settled.checkpoint_every) == (70, 12, 12)


def test_a_schedule_counts_the_steps_of_the_run():
  config = config_of(epochs=2.0, schedule__warmup_ratio=0.03, schedule__decay_steps=0)
  settled = epochs.settle_steps(config, 50.5)
  assert (settled.steps, settled.schedule.warmup_steps, settled.schedule.decay_steps) == (
    101, 4, 101,
  )  # fmt: skip
  assert config.schedule.decay_steps == 0 and settled.is_locked
  assert epochs.settle_steps(settled, 50.5) == settled
  given_in_steps = config_of(epochs=2.0, schedule__warmup_steps=5, schedule__decay_steps=80)
  assert epochs.settle_steps(given_in_steps, 50).schedule == given_in_steps.schedule


def test_passes_over_text(tmp_path):
  config = small_config(tmp_path, epochs=2.0, every_epoch=True, schedule__decay_steps=0)
  assert run(config, str(tmp_path / "run")) == 0
  found = lines(tmp_path / "run")
  assert found[-1]["data/epoch"] == pytest.approx(2, abs=0.1)
  first, last = (line for line in found if "eval/loss" in line)
  assert last is found[-1] and first["step"] == math.ceil(last["step"] / 2)
  assert saved_steps(tmp_path / "run") == [first["step"], last["step"]]


def test_a_mixture_has_no_epochs(tmp_path):
  config = small_config(tmp_path, epochs=1.0)
  path = config.data.path
  config.data.update(source="mixture", path="", mixture=((1, "jsonl", path), (2, "jsonl", path)))
  with pytest.raises(UserError, match="epochs count passes over one source"):
    run(config, str(tmp_path / "run"))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (100, 5), (101, 6)])
def test_the_warm_up_leaves_a_step(steps, warmup):
  config = run_config.base(ModelConfig()).unlock()
  config.steps, config.schedule.warmup_ratio, config.schedule.decay_steps = steps, 0.05, 0
  assert epochs.settle_schedule(config.lock()).schedule.warmup_steps == warmup
