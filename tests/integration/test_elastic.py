"""Other processes and other devices at each start of one run: the same rows, the same losses."""

import os
import sys

import numpy as np
import pytest

from gptneo_jax import prepare
from tests.helpers import HELPERS, started_hosts, train_runs
from tests.helpers.data_rows import byte_tokenizer

pytestmark = pytest.mark.processes

PHASES = ((1, 8), (2, 4), (4, 1), (1, 1))  # processes, and devices of each
EACH = 3  # steps


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  """Packed, with attention that stops at the ends of documents, of texts and of prepared ids."""
  texts = train_runs.write_corpus(tmp_path_factory.mktemp("texts"))
  folder = tmp_path_factory.mktemp("mixed")
  tokenizer, shards = folder / "tokenizer", folder / "shards"
  byte_tokenizer().save_pretrained(str(tokenizer))
  assert prepare.main([texts, str(shards), "--tokenizer", str(tokenizer), "--part", "0/1"]) == 0
  return {
    "data__source": "mixture",
    "data__mixture": f"((0.6, 'jsonl', '{texts}'), (0.4, 'shards', '{shards}'))",
    "data__tokenizer": tokenizer,
    "data__segment_ids": True,
    "model__resid_dropout": 0.1,
    "checkpoint_every": 0,
  }


def run(workdir, rows, processes: int, devices: int, settings) -> np.ndarray:
  """The tokens of each step's rows, in the order of their streams."""
  rows.mkdir()
  arguments = train_runs.train_command(workdir, **settings)[3:]
  statuses, outputs = started_hosts.run(
    [sys.executable, HELPERS / "train_counted.py", *arguments],
    processes,
    cwd=train_runs.REPOSITORY,
    env=train_runs.environment(devices)
    | {"ROWS_FOLDER": str(rows), "PYTHONPATH": str(train_runs.REPOSITORY)},
  )
  assert not any(statuses), outputs
  read = [np.load(rows / name) for name in os.listdir(rows)]
  read.sort(key=lambda host: host["streams"][0])
  streams = np.concatenate([host["streams"] for host in read])
  assert streams.tolist() == [*range(8)]  # each is read by one
  return np.concatenate([host["rows"] for host in read], axis=1)


def test_rows_and_losses(settings, tmp_path):
  steps = EACH * len(PHASES)
  settings = settings | {"steps": steps}
  expected_SxBxT = run(tmp_path / "alone", tmp_path / "rows", 1, 1, settings)
  found = [
    run(tmp_path / "run", tmp_path / f"rows{n}", *phase, settings | {"steps": EACH * (n + 1)})
    for n, phase in enumerate(PHASES)
  ]
  # Batches that were read ahead are read again, and not learned from twice.
  for n, rows_SxBxT in enumerate(found):
    np.testing.assert_array_equal(rows_SxBxT[:EACH], expected_SxBxT[EACH * n : EACH * (n + 1)])
  np.testing.assert_allclose(
    train_runs.losses(tmp_path / "run"), train_runs.losses(tmp_path / "alone"), rtol=2e-5
  )
