"""What is saved comes back bit for bit, the right checkpoints are kept, a failure is one line."""

import contextlib
import json
import resource
import time
import types

import jax
import numpy as np
import pytest

from gptneo_jax.checkpoints import manager, manifest
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.checkpoints.step_folders import CheckpointError, saved_steps
from tests.helpers.checkpoint_runs import abstract, assert_is_step, restore, save, state_of


def test_round_trip_is_bitwise(tmp_path):
  checkpointer = manager.Checkpointer(tmp_path)
  assert checkpointer.restore(*map(abstract, state_of())) is None
  assert save(checkpointer, 7)
  assert not save(checkpointer, 7)  # saved already
  assert_is_step(checkpointer.restore(*map(abstract, state_of())), 7)
  checkpointer.close()
  assert_is_step(restore(tmp_path), 7)
  assert (tmp_path / "7" / "params").is_dir()


def test_keeps_the_latest_and_the_best(tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: None, 4: float("nan"), 5: 2.0, 6: 4.0}
  for steps in ((1, 2, 3), (4, 5, 6)):  # the second process reads the losses of the first
    checkpointer = manager.Checkpointer(tmp_path, keep_latest=2, keep_best=1)
    for step in steps:
      loss = losses[step]
      save(checkpointer, step, None if loss is None else {"eval/loss": loss})
    checkpointer.close()
  assert saved_steps(tmp_path) == [2, 5, 6]
  (tmp_path / "2" / "metrics" / "metrics").write_text('{"eval/lo')  # then it is not the best
  checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, keep_best=1)
  save(checkpointer, 7)
  checkpointer.close()
  assert saved_steps(tmp_path) == [5, 7]


@pytest.mark.parametrize(
  ("metric", "kept"), [("eval/accuracy", [2, 6]), ("eval/wer", [1, 6]), ("eval/loss", [3, 6])]
)
def test_the_best_by_another_metric(metric, kept, tmp_path):
  """The first of equals; an accuracy that is not finite is none."""
  accuracies = (0.25, 0.75, 0.5, 0.75, float("nan"), 0.25)
  checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, best_metric=metric)
  for step, value in enumerate(accuracies, start=1):
    metrics = {"eval/accuracy": value, "eval/wer": value, "eval/loss": abs(step - 3)}
    save(checkpointer, step, metrics if step % 2 else None)
    if step % 2 == 0:
      checkpointer.add_metrics(step, metrics)
  checkpointer.close()
  assert saved_steps(tmp_path) == kept


@pytest.mark.parametrize("metrics", [None, {"train/loss": 9.0}])
def test_metrics_measured_after_the_save_rank_it(metrics, tmp_path):
  """As an evaluation does, in this process or in one that owed it."""
  losses = {1: 3.0, 2: 1.0, 3: 2.0}
  for steps in ((1, 2), (3, 4, 5)):
    checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, keep_best=1)
    for step in steps:
      save(checkpointer, step, metrics)
      if step in losses:
        checkpointer.add_metrics(step, {"eval/loss": losses[step]})
    checkpointer.close()
  assert saved_steps(tmp_path) == [2, 5]
  stored = json.loads((tmp_path / "2" / "metrics" / "metrics").read_text())
  assert stored == {**(metrics or {}), "eval/loss": 1.0}
  restored = restore(tmp_path)
  assert_is_step(restored, 5)
  assert restored.metrics == (metrics or {})


def test_an_asynchronous_save_survives_donation(tmp_path):
  """The next step donates the arrays while they are being written."""

  @jax.jit
  def make(seed):
    return {f"w{i}": jax.random.normal(jax.random.key(seed + i), (1024, 1024)) for i in range(24)}

  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
  overwrite(make(1))  # compiles
  checkpointer = manager.Checkpointer(tmp_path)
  for step in range(1, 11):  # a save that is over before the step, on a busy machine, shows nothing
    params = jax.block_until_ready(make(step))  # 96 MiB
    expected = {name: np.array(x, copy=True) for name, x in params.items()}
    checkpointer.save(step, params=params, optimizer={"step": np.int32(step)}, data_state={})
    params = jax.block_until_ready(overwrite(params))
    if not (tmp_path / str(step)).exists():
      break
  else:
    pytest.fail("each of ten saves was over before the step")
  params = jax.block_until_ready(overwrite(overwrite(params)))
  checkpointer.close()
  restored = restore_params(tmp_path, abstract(params), step)
  for name, array in expected.items():
    np.testing.assert_array_equal(restored[name], array)


def test_one_of_each_day_is_kept(tmp_path, monkeypatch):
  """But not the run's first; whoever writes it, and whatever has been removed since."""
  hours, checkpointer = [10, 20, 27, 30, 40, 47.9, 60, 61, 62, 75], None
  for step, hour in enumerate(hours, start=1):
    clock = types.SimpleNamespace(time=lambda hour=hour: 3600.0 * hour)
    if checkpointer:
      checkpointer.wait()
    monkeypatch.setattr(manifest, "time", clock)
    if step % 4 == 1:
      if checkpointer:
        checkpointer.close()
      checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, keep_every_hours=24)
    save(checkpointer, step)
  checkpointer.close()
  assert saved_steps(tmp_path) == [3, 7, 10]
  assert_is_step(restore(tmp_path), 10)


def test_a_failure_is_known_without_waiting(tmp_path):
  checkpointer = manager.Checkpointer(tmp_path)
  assert checkpointer.failure() is None
  save(checkpointer, 1)
  checkpointer.wait()
  assert checkpointer.failure() is None
  big = jax.random.normal(jax.random.key(0), (1024, 1024))
  failure, until = None, time.monotonic() + 60
  with _largest_file(2**20):
    checkpointer.save(2, params={"w": big}, optimizer={"step": np.int32(1)}, data_state={})
    while (failure := checkpointer.failure()) is None and time.monotonic() < until:
      time.sleep(0.01)
  assert "checkpoint 2" in str(failure) and "the last good one is 1" in str(failure)
  assert checkpointer.failure() is None  # it is said once
  assert save(checkpointer, 2)
  checkpointer.close()
  assert_is_step(restore(tmp_path), 2)


@contextlib.contextmanager
def _largest_file(size):
  """Writing past `size` bytes fails, as on a full disk, but with EFBIG."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_save_is_one_clear_line(tmp_path, caplog, capfd):
  checkpointer = manager.Checkpointer(tmp_path, keep_latest=1)
  save(checkpointer, 1)
  checkpointer.wait()
  big = jax.random.normal(jax.random.key(0), (1024, 1024))
  with _largest_file(2**20), pytest.raises(CheckpointError) as caught:
    checkpointer.save(2, params={"w": big}, optimizer={"step": np.int32(1)}, data_state={})
    checkpointer.wait()
  message = str(caught.value)
  assert "checkpoint 2" in message and "File too large; the last good one is 1" in message
  assert "\n" not in message
  assert saved_steps(tmp_path) == [1]
  save(checkpointer, 3)
  checkpointer.close()
  assert saved_steps(tmp_path) == [3]
  assert_is_step(restore(tmp_path), 3)
  assert not caplog.records and capfd.readouterr().err == ""
