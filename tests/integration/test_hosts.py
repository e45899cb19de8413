"""Two and four hosts of two devices: the losses of one process, and each document once an epoch."""

import collections

import numpy as np
import pytest

from tests.helpers import HELPERS, started_hosts, train_runs
from tests.helpers.data_rows import byte_tokenizer, documents_in, write_shards

pytestmark = pytest.mark.processes

DOCUMENTS = [f"this is document number {number}" for number in range(64)]
STREAMS = train_runs.SMALL["data.num_streams"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  folder = tmp_path_factory.mktemp("numbered")
  byte_tokenizer().save_pretrained(folder / "tokenizer")
  return {
    "data__source": "jsonl",
    # Five files for eight streams: none is of one stream alone.
    "data__path": write_shards(folder, [DOCUMENTS[n::5] for n in range(5)]),
    "data__validation_fraction": 0.0,
    "data__tokenizer": folder / "tokenizer",
    "checkpoint_every": 0,
  }


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  result = train_runs.train(workdir, **settings)
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.mark.parametrize(("count", "mesh"), [(2, {"mesh__fsdp": 4}), (4, {"mesh__fsdp": 2})])
def test_hosts_learn_what_one_process_learns(count, mesh, settings, one_process, tmp_path):
  python, _, _, *arguments = train_runs.train_command(tmp_path / "run", **settings | mesh)
  environment = train_runs.environment(devices=2) | {"ROWS_FOLDER": str(tmp_path)}
  statuses, outputs = started_hosts.run(
    [python, HELPERS / "train_counted.py", *arguments],
    count, cwd=train_runs.REPOSITORY, env=environment,
  )  # fmt: skip
  assert statuses == [0] * count, outputs
  losses, expected = train_runs.losses(tmp_path / "run"), train_runs.losses(one_process)
  assert len(losses) == train_runs.SMALL["steps"]
  np.testing.assert_allclose(losses, expected, rtol=2e-5)

  seen, read_by = collections.Counter(), collections.Counter()
  for host in range(count):
    found = np.load(tmp_path / f"{host}.npz")
    assert len(found["streams"]) == STREAMS // count == found["rows"].shape[1]
    for place, stream in enumerate(found["streams"]):
      read_by[int(stream)] += 1
      documents = documents_in(found["rows"][:, place].ravel(), byte_tokenizer())
      own = len(set(documents))
      assert len(documents) > own  # the epoch is over, and its documents are all of the first ones
      assert len(set(documents[:own])) == own
      seen.update(documents[:own])
  assert read_by == dict.fromkeys(range(STREAMS), 1)
  assert seen == dict.fromkeys(DOCUMENTS, 1)
