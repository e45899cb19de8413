"""Settings that change how a run starts: weights of another run, segments, a profile."""

import pytest

import gptneo_jax
from gptneo_jax.evals import harness
from tests.helpers import train_runs

pytestmark = pytest.mark.processes


def test_weights_of_another_run(tmp_path):
  """The first loss of the second run is below that of the first, which began at random."""
  settings = {
    "data__source": "jsonl",
    "data__path": train_runs.write_corpus(tmp_path),
    "data__validation_fraction": 0.1,
    "steps": 6,
    "schedule__decay_steps": 6,
  }
  first = train_runs.train(tmp_path / "first", **settings)
  assert first.returncode == 0, first.stderr
  settings |= {
    "init_from": str(tmp_path / "first"),
    "data__tokenizer": str(tmp_path / "first"),
    "data__segment_ids": True,
    "profile__first_step": 2,
    "profile__steps": 2,
  }
  second = train_runs.train(tmp_path / "second", **settings)
  assert second.returncode == 0, second.stderr
  assert f"weights from {tmp_path / 'first'}" in second.stdout
  assert train_runs.losses(tmp_path / "second")[0] < train_runs.losses(tmp_path / "first")[0] - 0.1
  assert list((tmp_path / "second" / "profile").rglob("*.xplane.pb"))


def test_tasks_with_each_evaluation(tmp_path):
  """The figures are those of the checkpoint; of a task that cannot be had it is said once why."""
  pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness")
  run = train_runs.train(
    tmp_path / "run",
    data__source="jsonl",
    data__path=train_runs.write_corpus(tmp_path),
    data__validation_fraction=0.1,
    steps=2,
    eval_every=1,
    eval__tasks="('stdlib_cloze', 'piqa_local')",
    eval__task_items=3,
  )
  assert run.returncode == 0, run.stderr
  *_, last = train_runs.metrics(tmp_path / "run")
  lm = gptneo_jax.load(str(tmp_path / "run"))
  results = harness.evaluate_tasks(lm, ["stdlib_cloze"], limit=3)["results"]["stdlib_cloze"]
  assert results
  for metric, value in results.items():
    assert last[f"eval/stdlib_cloze/{metric}"] == pytest.approx(value, rel=1e-4)
  assert f"stdlib_cloze{' ' * 20}" in run.stdout
  assert run.stderr.count("piqa_local is not evaluated: ") == 1
  assert "█" not in run.stderr  # no bars in what is no terminal
