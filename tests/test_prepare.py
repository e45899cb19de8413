"""The program: shards of files, and training on them."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gptneo_jax import data, prepare
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.errors import UserError
from tests.helpers.data_rows import byte_tokenizer, take, write_shards
from tests.helpers.train_runs import train

WORDS = "the quick brown fox jumps over a lazy dog and runs away".split()


def texts(count, seed):
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, rng.integers(1, 30))) + f" {seed}.{n}" for n in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The glob of three files of texts, and the folder of a tokenizer."""
  folder = tmp_path_factory.mktemp("files")
  path = write_shards(folder, [texts(40, seed) for seed in range(3)], ".jsonl.zst")
  byte_tokenizer().save_pretrained(str(folder / "bytes"))
  return path, str(folder / "bytes")


@pytest.fixture(scope="module")
def shards(folders, tmp_path_factory):
  path, tokenizer = folders
  folder = str(tmp_path_factory.mktemp("prepared") / "ids")
  arguments = ["--tokenizer", tokenizer, "--records", "16", "--validation_fraction", "0.1"]
  command = [sys.executable, "-m", "gptneo_jax.prepare", path, folder, *arguments]
  done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert "train on it with --config.data.source=shards" in done.stdout
  return folder


def config_of(folder, **options):
  return data.DataConfig(source="shards", path=folder, num_streams=4, **options)


def test_killed_and_started_again(folders, tmp_path):
  """By SIGKILL, where it may be: the folder becomes the same, and what was done is not redone."""
  tokenizer = folders[1]
  path = write_shards(tmp_path, [texts(300, seed) for seed in range(2)], ".jsonl.zst")
  arguments = ["--tokenizer", tokenizer, "--records", "8"]
  command = [sys.executable, "-m", "gptneo_jax.prepare", path, str(tmp_path / "ids"), *arguments]
  done, before = tmp_path / "ids", {}
  for count in (1, 20):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list(done.glob("*-0*-0*.json"))) < count:
      time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)  # with its workers
    process.wait()
    there = {file: file.stat().st_mtime_ns for file in done.glob("*-0*-0*.json")}
    assert count <= len(there) < 76 and before.items() <= there.items()
    before = there
  assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
  assert before.items() <= {file: file.stat().st_mtime_ns for file in before}.items()
  assert prepare.main([path, str(tmp_path / "at_once"), *arguments, "--part", "0/1"]) == 0
  contents = lambda folder: {
    file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
  }
  assert contents(done) == contents(tmp_path / "at_once")


def test_parts_make_what_workers_make(folders, shards, tmp_path, capsys):
  path, tokenizer = folders
  arguments = ["--tokenizer", tokenizer, "--records", "16", "--validation_fraction", "0.1"]
  (tmp_path / "ids").mkdir()
  (tmp_path / "ids" / "0000-000.jsonl.zst-000000.bin.77.part").write_bytes(b"of a killed one")
  for part in ("1/2", "0/2"):
    assert prepare.main([path, str(tmp_path / "ids"), *arguments, "--part", part]) == 0
  said = capsys.readouterr().out
  assert "part 1/2 is done" in said and "not all of 0000-000.jsonl.zst is prepared" in said
  names = lambda folder: sorted(path.name for path in pathlib.Path(folder).iterdir())
  assert names(shards) == names(tmp_path / "ids")
  for file in pathlib.Path(shards).iterdir():
    if file.is_file():
      assert (tmp_path / "ids" / file.name).read_bytes() == file.read_bytes(), file


@pytest.mark.processes
def test_a_ray_cluster_makes_the_same(folders, shards, tmp_path):
  pytest.importorskip("ray", reason="Ray is not installed")
  command = [
    sys.executable, "-m", "gptneo_jax.prepare", folders[0], str(tmp_path / "ids"), "--ray",
    "--tokenizer", folders[1], "--records", "16", "--validation_fraction", "0.1",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  for file in pathlib.Path(shards).iterdir():
    if file.is_file():
      assert (tmp_path / "ids" / file.name).read_bytes() == file.read_bytes(), file


def test_an_epoch_reads_each_token_once(shards):
  tokens = TokenShards(shards).tokens
  batches = data.TrainBatches(config_of(shards), byte_tokenizer(), batch_size=4, seq_len=31, seed=0)
  rows = tokens // 32
  found = np.concatenate([batch["inputs"] for batch in take(batches, rows // 4)])
  whole = TokenShards(shards).ids(0, rows * 32).reshape(rows, 32)[:, :-1]
  missing = {row.tobytes() for row in whole} - {row.tobytes() for row in found.astype(np.int32)}
  assert len(missing) == rows % 4
  batches.close()


def test_resume_and_documents(shards):
  config = config_of(shards, segment_ids=True, mixture=())
  make = lambda: data.TrainBatches(config, byte_tokenizer(), batch_size=8, seq_len=20, seed=0)
  batches, other = make(), make()
  take(batches, 7)
  other.set_state(json.loads(json.dumps(batches.get_state())))
  for _ in range(5):
    one, two = next(batches), next(other)
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
    ends = one["inputs"] == byte_tokenizer().eos_token_id
    np.testing.assert_array_equal(one["weights"], ~ends)
    np.testing.assert_array_equal(np.diff(one["segment_ids"], axis=1), ends[:, :-1])
  batches.close()
  other.close()


def test_mixed_with_text(folders, shards):
  """By tokens, as the weights say; exactly resumed."""
  config = data.DataConfig(
    source="mixture", num_streams=2, validation_fraction=0,
    mixture=((3.0, "shards", shards), (1.0, "jsonl", folders[0])),
  )  # fmt: skip
  make = lambda: data.TrainBatches(config, byte_tokenizer(), batch_size=2, seq_len=63, seed=0)
  batches, other = make(), make()
  take(batches, 60)
  emitted = batches.get_state()["streams"]["0"]["emitted"]
  assert emitted[0] / emitted[1] == pytest.approx(3, rel=0.1)
  other.set_state(batches.get_state())
  np.testing.assert_array_equal(next(batches)["inputs"], next(other)["inputs"])
  batches.close()
  other.close()


def test_a_run_on_shards(shards, tmp_path):
  """Its tokenizer, its validation documents and the size of its data are those of the shards."""
  result = train(tmp_path / "run", data__source="shards", data__path=shards, steps=4, eval_every=4)
  assert result.returncode == 0, result.stderr
  assert f"tokenizer: 257 ids, of {shards}" in result.stderr + result.stdout
  assert f"{TokenShards(shards).tokens:,} tokens" in result.stderr + result.stdout
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert any("eval/loss" in json.loads(line) for line in lines)


def test_another_tokenizer_is_refused(shards):
  from tests.helpers.small_tokenizers import trained_tokenizer

  with pytest.raises(data.DataError, match=r"another tokenizer .* its own is .*/tokenizer"):
    data.TrainBatches(config_of(shards), trained_tokenizer(), batch_size=4, seq_len=8, seed=0)


def test_texts_are_not_there(shards):
  config = config_of(shards)
  with pytest.raises(data.DataError, match="holds ids, and texts are needed"):
    list(data.evaluation_documents(config, "train"))
  assert 3 < len(list(data.evaluation_documents(config, "validation"))) < 30
  with pytest.raises(data.DataError, match="no test documents were held out"):
    list(data.evaluation_documents(config, "test"))


def test_a_shard_that_is_missing(shards, tmp_path):
  folder = tmp_path / "ids"
  shutil.copytree(shards, folder)
  (folder / "0001-001.jsonl.zst-000001.json").unlink()
  with pytest.raises(data.DataError, match=r"not all of 0001-001\.jsonl\.zst is prepared"):
    data.check_sources(config_of(str(folder)))


def test_without_duplicates(folders, tmp_path, capsys):
  """All files twice: what stays is what there is of them once, and each part says what is to do."""
  path = f"{folders[0]},{write_shards(tmp_path, [texts(40, seed) for seed in range(3)], '.jsonl')}"
  arguments = [path, str(tmp_path / "ids"), "--tokenizer", folders[1], "--dedup", "exact"]
  assert prepare.main([*arguments, "--part", "0/2"]) == 0
  assert "part 0/2 has read its files; run it again when all have" in capsys.readouterr().out
  assert prepare.main([*arguments, "--part", "1/2"]) == 0
  assert "part 1/2 is done" in capsys.readouterr().out
  assert prepare.main([*arguments, "--workers", "2"]) == 0
  said = capsys.readouterr().out
  assert "120 of 240 documents repeat others" in said
  shards = TokenShards(str(tmp_path / "ids"))
  assert sum(m.documents + m.held_out for m in shards.manifests) == 120


def test_a_worker_that_fails_ends_the_others(folders, tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
  path = f"{folders[0]},{tmp_path}/a.jsonl"
  with pytest.raises(UserError, match=r"a\.jsonl:2: invalid JSON"):
    prepare.main([path, str(tmp_path / "ids"), "--tokenizer", folders[1], "--workers", "2"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--part", "2/2"], "'2/2' is not i/n"),
    (["--workers", "0"], "not a whole number above 0"),
    (["--validation_fraction", "1"], "not in"),
    (["--part", "0/2", "--workers", "2"], "not allowed with"),
  ],
)
def test_mistakes(folders, tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    prepare.main([folders[0], str(tmp_path), "--tokenizer", folders[1], *arguments])
  with pytest.raises(UserError, match="no file matches"):
    prepare.main([str(tmp_path / "*.jsonl"), str(tmp_path), "--tokenizer", folders[1]])
