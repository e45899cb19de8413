"""Settings that change how a run starts: weights of another run, segments, a profile."""

import pytest
import train_runs

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
