"""The figures at the end of a run, and what of them goes through a checkpoint."""

import json
import types

import pytest
from etils import epath

from gptneo_jax.config import ModelConfig
from gptneo_jax.train import run
from gptneo_jax.training import run_config, summary
from tests.helpers.clock import Clock
from tests.helpers.small_runs import lines, small_config


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(summary, "time", types.SimpleNamespace(monotonic=clock))
  return clock


def a_run(prepared=None, **settings):
  config = run_config.base(ModelConfig())
  config.update(batch_size=4, seq_len=10, **settings)
  model = types.SimpleNamespace(flops_per_token=lambda seq_len: 100.0 * seq_len)
  return types.SimpleNamespace(config=config, model_config=model, prepared=prepared)


def test_the_figures_are_of_the_whole_run(clock, tmp_path):
  first = summary.Summary(a_run(), {})
  for loss in (3.0, 2.0):
    clock.now += 10
    first.add_loss(loss)
  first.add_evaluation(2, {"train/loss": 2.0, "eval/loss": 2.5})
  state = json.loads(json.dumps(first.get_state()))
  clock.now += 1000  # between two processes

  second = summary.Summary(a_run(), state)
  clock.now += 20
  second.add_loss(1.0)
  second.add_evaluation(3, {"eval/loss": 2.75, "eval/loss/Prose": float("nan")})
  text = second.write(epath.Path(tmp_path), 3, {"": 1.5})
  assert second.is_written(epath.Path(tmp_path))
  assert json.loads((tmp_path / "summary.json").read_text()) == {
    "epoch": 1.5, "steps": 3, "total_flos": 3 * 4 * 10 * 1000.0, "train_loss": 2.0,
    "train_runtime": 40.0, "train_samples_per_second": 0.3, "train_steps_per_second": 0.075,
    "eval_loss": 2.75, "eval_loss_Prose": None,
    "metric_for_best_model": "eval/loss", "best_metric": 2.5, "best_step": 2,
  }  # fmt: skip
  assert text == (
    "summary\n"
    "  run time         0:00:40, 0.3 samples/s, 0.075 steps/s\n"
    "  epochs           1.50 in 3 steps\n"
    "  total FLOPs      1.2e+05\n"
    "  training loss    2.0000, mean of all steps\n"
    "  last evaluation  loss 2.7500, loss_Prose not finite\n"
    "  best             eval/loss 2.5000 at step 2"
  )


def test_samples_are_examples_where_the_task_has_them(clock):
  summed = summary.Summary(a_run(types.SimpleNamespace(examples_per_epoch=50)), {})
  clock.now += 10
  assert summed.figures(6, {"": 2.0})["train_samples_per_second"] == 10.0


def test_a_checkpoint_from_before_there_was_a_summary(clock):
  summed = summary.Summary(a_run(), {})
  clock.now += 10
  assert summed.figures(6, {"a": 1.0, "b": 2.0})["train_loss"] is None
  assert summed.figures(6, {"a": 1.0, "b": 2.0})["epoch"] == 1.5
  assert "best_metric" not in summed.figures(6, {"a": 1.0})


def test_a_run_writes_it(tmp_path, capsys):
  assert run(small_config(tmp_path), str(tmp_path / "run")) == 0
  found, written = (
    json.loads((tmp_path / "run" / "summary.json").read_text()),
    lines(tmp_path / "run"),
  )
  assert found["eval_loss"] == written[-1]["eval/loss"]
  assert found["epoch"] == written[-1]["data/epoch"]
  evaluations = {line["step"]: line["eval/loss"] for line in written if "eval/loss" in line}
  assert found["best_step"] == min(evaluations, key=lambda step: evaluations[step])
  assert "\nsummary\n  run time " in capsys.readouterr().out
