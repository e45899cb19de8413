"""Training on prepared data behind a URL ends as training on the folder, bit for bit."""

import pytest

from gptneo_jax.prepare import main as prepare
from tests.helpers import train_runs
from tests.helpers.data_rows import byte_tokenizer
from tests.helpers.file_server import FileServer

pytestmark = pytest.mark.processes


def test_a_run_from_a_server_that_fails_resumes_bitwise(tmp_path):
  (tmp_path / "raw").mkdir()
  corpus = train_runs.write_corpus(tmp_path / "raw")
  byte_tokenizer().save_pretrained(tmp_path / "bytes")
  arguments = ["--workers", "1", "--records", "70", "--validation_fraction", "0.1"]
  folder = tmp_path / "ids"
  prepare([corpus, str(folder), "--tokenizer", str(tmp_path / "bytes"), *arguments])
  settings = {
    "data__source": "shards", "data__validation_fraction": 0.1, "data__test_fraction": 0,
    "data__tokenizer": "train", "data__cache": tmp_path / "cache",
  }  # fmt: skip

  def train(workdir, path, steps):
    result = train_runs.train(tmp_path / workdir, data__path=path, steps=steps, **settings)
    assert result.returncode == 0, result.stderr
    return result.stdout

  train("local", folder, 12)
  with FileServer(folder, share=0.25, faults=["503", "reset", "cut off"]) as server:
    assert f"tokenizer: 257 ids, of {server.url}\n" in train("remote", server.url, 7)
    assert "resuming from step 7" in train("remote", server.url, 12)
    assert sum(server.failed.values()) > 2
  ours, theirs = (train_runs.metrics(tmp_path / name) for name in ("remote", "local"))
  exact = [key for key in theirs[-1] if not key.startswith("perf/")]
  assert [line["step"] for line in ours] == list(range(1, 13)) and "eval/loss" in exact
  for key in exact:
    assert ours[-1][key] == theirs[-1][key], key
  arrays = [train_runs.arrays(tmp_path / name, 12) for name in ("remote", "local")]
  train_runs.assert_bitwise_equal(*arrays)
