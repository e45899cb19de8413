"""Eight devices, other meshes and several hosts: the same data, the same loss to rounding."""

import json

import numpy as np
import pytest

from tests.helpers import HELPERS, started_hosts, train_runs

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  corpus = train_runs.write_corpus(tmp_path_factory.mktemp("corpus"))
  return {
    "data__source": "jsonl",
    "data__path": corpus,
    "data__validation_fraction": 0.1,
    "eval_every": 8,
  }


@pytest.fixture(scope="module")
def one_device(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  result = train_runs.train(workdir, **settings)
  assert result.returncode == 0, result.stderr
  return workdir


def test_a_checkpoint_goes_on_on_another_mesh(settings, one_device, tmp_path):
  first = settings | {"steps": 8, "mesh__data": 1, "mesh__fsdp": 8}
  result = train_runs.train(tmp_path, devices=8, **first)
  assert result.returncode == 0, result.stderr
  then = settings | {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  result = train_runs.train(tmp_path, devices=8, **then)
  assert result.returncode == 0, result.stderr
  assert "resuming from step 8" in result.stdout
  np.testing.assert_allclose(train_runs.losses(tmp_path), train_runs.losses(one_device), rtol=2e-5)


def test_accumulation_is_the_large_batch(settings, one_device, tmp_path):
  result = train_runs.train(tmp_path, grad_accumulation=4, **settings)
  assert result.returncode == 0, result.stderr
  np.testing.assert_allclose(train_runs.losses(tmp_path), train_runs.losses(one_device), rtol=2e-5)


def two_hosts(command: list[str]) -> tuple[list[int], list[tuple[str, str]]]:
  """Runs to the end in two processes of two devices each; their statuses, and what they print."""
  environment = train_runs.environment(devices=2)
  return started_hosts.run(command, 2, cwd=train_runs.REPOSITORY, env=environment)


def test_two_hosts(settings, one_device, tmp_path):
  """The rows of each lie apart; then the run resumes in one process, and skips no steps there."""
  python, _, _, *arguments = train_runs.train_command(
    tmp_path,
    **settings
    | {"steps": 8, "mesh__fsdp": 2, "eval__sample_tokens": 8, "skip__nonfinite": True}
    | {"skip__spike_sigmas": 50.0, "skip__window": 4},
  )
  program = HELPERS / "train_on_torus.py"
  statuses, outputs = two_hosts([python, program, *arguments])
  assert statuses == [0, 0], outputs
  assert "done: step 8, checkpoint" in outputs[0][0]  # one of them speaks
  assert "step" not in outputs[1][0] + outputs[1][1]
  result = train_runs.train(tmp_path, **settings)
  assert result.returncode == 0, result.stderr
  np.testing.assert_allclose(train_runs.losses(tmp_path), train_runs.losses(one_device), rtol=2e-5)
  np.testing.assert_allclose(evaluations(tmp_path), evaluations(one_device), rtol=2e-5)


def evaluations(workdir) -> list[float]:
  """Validation loss and perplexity after steps 8, of two hosts, and 12."""
  lines = [line for line in train_runs.metrics(workdir) if line["step"] in (8, 12)]
  return [line[name] for line in lines for name in ("eval/loss", "eval/perplexity")]


def test_a_bad_record_of_one_host_ends_both(settings, one_device, tmp_path):
  """Of the second's streams, far in: the first is waiting for the second's gradients by then."""
  shards = tmp_path / "shards"
  shards.mkdir()
  lines = [json.dumps({"text": f"a text of a few words, number {n}"}) for n in range(100)]
  for stream in range(8):
    bad = ["{"] if stream == 6 else []
    (shards / f"{stream}.jsonl").write_text("\n".join([*lines[:40], *bad, *lines[40:]]) + "\n")
  with (shards / "7.jsonl").open(
    "a"
  ) as file:  # so much that nobody counts it before the first step
    file.writelines([json.dumps({"text": "a text of many words " * 400}) + "\n"] * 4000)
  settings = settings | {"data__path": f"{shards}/*.jsonl", "data__tokenizer": one_device}
  settings |= {
    "steps": 10_000,
    "data__shuffle_window": 16,
    "checkpoint_every": 0,
    "log_every": 1000,
  }
  statuses, outputs = two_hosts(train_runs.train_command(tmp_path / "run", **settings))
  assert statuses == [1, 1], outputs
  for _, err in outputs:
    assert "error on process 1 (" in err.splitlines()[-1]
    assert f"{shards}/6.jsonl:41" in err.splitlines()[-1]
    assert "Traceback" not in err
