"""A mistake gets one line that names it, exit status 1, and loses nothing."""

import json
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import pytest
from absl import flags

import gptneo_jax.train
from tests.helpers import train_runs
from tests.helpers.data_rows import byte_tokenizer

pytestmark = pytest.mark.processes


def one_line(result: subprocess.CompletedProcess, *, begun: bool = False) -> str:
  """The error: all there is on standard error, or the last of it if the run had begun."""
  assert result.returncode == 1, result.stdout + result.stderr
  *before, line = result.stderr.strip().splitlines()
  assert begun or not before, before
  assert line.startswith("error: ") and "Traceback" not in result.stderr
  return line


@pytest.fixture
def refused_here(monkeypatch, capsys):
  """Runs a command within this process, which spares its start; returns the one line."""

  def run(command: list[str]) -> str:
    monkeypatch.chdir(train_runs.REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["train", *command[3:]])
    flags.FLAGS.unparse_flags()
    ours = {flag.name for flag in flags.FLAGS.flags_by_module_dict().get("gptneo_jax.train", ())}
    for name in [name for name in flags.FLAGS if name.startswith("config.") or name in ours]:
      delattr(flags.FLAGS, name)  # those of the run before, and its settings
    with pytest.raises(SystemExit) as stopped:
      gptneo_jax.train.main()
    captured = capsys.readouterr()
    return one_line(
      subprocess.CompletedProcess(command, stopped.value.code, captured.out, captured.err)
    )

  return run


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"optimizer.learning_rat": 1}, "did you mean --config.optimizer.learning_rate?"),
    ({"steps": "many"}, "steps"),
    ({"model.num_heads": 3}, "not divisible by model.num_heads 3"),
    ({"mesh.data": 16}, "mesh data=16, fsdp=1, tensor=1 is of 16 devices, and there are 1"),
    ({"batch_size": 12}, "data.num_streams 8 does not divide batch_size 12"),
    ({"grad_accumulation": 3}, "batch_size 8 is not divisible by"),
    ({"seq_len": 64}, "seq_len 64 is more than model.max_position_embeddings 32"),
    ({"data.source": "jsonl", "data.path": "nowhere/*.jsonl"}, "nowhere/*.jsonl"),
    ({"data.on_bad_record": "ignore"}, "data.on_bad_record"),
    ({"data.tokenizer": "./no_such_folder"}, "no such folder"),
  ],
)
def test_settings(settings, expected, tmp_path, refused_here):
  assert expected in refused_here(train_runs.train_command(tmp_path / "run", **settings))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("name", "content", "settings", "expected"),
  [
    ("a.csv", "mesage,label\nhi,1\n", {}, "a.csv: no column 'text'"),
    ("a.csv", "a,b\nhi,1\n", {"columns": "text=A,label=b"}, "did you mean a?"),
    ("a.csv", "text,label\nhi,1,2\n", {}, "a.csv:2: 3 fields in a table of 2"),
    ("a.csv", 'text,label\nhi,1\n"no end,0\n', {}, "a.csv:3: a quote opens here"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', {}, "a.jsonl:2: invalid JSON"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, "a.jsonl:2: no label"),
    ("a.json", '[{"text": "a", "label": 1}]', {}, "data.validation_fraction=0.1 of 1 record"),
    ("a.json", "[]", {}, "a.json holds no record"),
    ("a.tsv", "1\thi\n", {"columns": "txt=1"}, "there is no 'txt' here; did you mean text?"),
  ],
)
def test_labelled_files(name, content, settings, expected, tmp_path, refused_here):
  (tmp_path / name).write_text(content)
  byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
  settings = {f"data__{key}": value for key, value in settings.items()} | {
    "task": "sequence_classification",
    "model__head": "sequence_classification",
    "data__source": "auto",
    "data__path": tmp_path / name,
    "data__tokenizer": tmp_path / "tokenizer",
    "data__validation_fraction": 0.1,
    "data__test_fraction": 0.0,
  }
  assert expected in refused_here(train_runs.train_command(tmp_path / "run", **settings))


def test_config_file_that_is_not_there(tmp_path, refused_here):
  line = refused_here(train_runs.train_command(tmp_path, config="configs/neo_13b.py"))
  assert "configs/neo_1p3b.py" in line


def test_what_cannot_run_here_is_refused_in_seconds(tmp_path):
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  result = subprocess.run(
    [*train_runs.train_command(tmp_path)[:3], "--config", "configs/neo_2p7b.py"],
    cwd=train_runs.REPOSITORY, env=train_runs.environment(), capture_output=True, text=True,
  )  # fmt: skip
  line = one_line(result)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  # Of the processor, so that a busy machine fails no test.
  assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
  assert "data/pile/train/*.jsonl.zst" in line
  assert re.search(r"memory: a step needs about .*parameters \d+\.\d\d GiB.*there are ", line)
  assert "python -m gptneo_jax.train --config configs/neo_2p7b.py:runlocal" in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A corpus and a run of it that came to its end."""
  folder = tmp_path_factory.mktemp("finished")
  settings = {"data__source": "jsonl", "data__path": train_runs.write_corpus(folder)}
  settings |= {"data__validation_fraction": 0.1}
  result = train_runs.train(folder / "run", **settings)
  assert result.returncode == 0, result.stderr
  return folder, settings


def test_a_folder_with_another_model(finished):
  folder, settings = finished
  line = one_line(train_runs.train(folder / "run", **settings | {"model__hidden_size": 16}))
  assert "holds a different model (hidden_size: 16 != 32)" in line


def test_a_tokenizer_larger_than_the_vocabulary(finished, tmp_path):
  folder, settings = finished
  settings = settings | {"data__tokenizer": str(folder / "run"), "model__vocab_size": 290}
  line = one_line(train_runs.train(tmp_path, **settings))
  assert "300" in line and "290" in line


def test_a_checkpoint_cut_off_half_way(finished, tmp_path):
  folder, settings = finished
  shutil.copytree(folder / "run", tmp_path / "run")
  for file in (tmp_path / "run" / "12" / "params").rglob("*"):
    if file.is_file() and file.stat().st_size > 200:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  result = train_runs.train(tmp_path / "run", **settings)
  assert result.returncode == 0, result.stderr
  assert "checkpoint 12 is damaged" in result.stderr
  assert "resuming from step 8" in result.stdout
  train_runs.assert_bitwise_equal(
    train_runs.arrays(tmp_path / "run", 12), train_runs.arrays(folder / "run", 12)
  )


def test_bad_records_stop_the_run_or_are_counted(finished, tmp_path):
  folder, settings = finished
  good = (folder / "0.jsonl").read_text().splitlines()
  shard = tmp_path / "bad.jsonl"
  shard.write_text("\n".join([*good[:40], '{"text": "cut off', *good[40:]]) + "\n")
  settings = settings | {"data__path": str(shard), "data__num_streams": 1}
  line = one_line(train_runs.train(tmp_path / "run", **settings), begun=True)
  assert f"{shard}:41" in line and "on_bad_record='skip'" in line
  result = train_runs.train(tmp_path / "run", **settings | {"data__on_bad_record": "skip"})
  assert result.returncode == 0, result.stderr
  assert "skipped in the data: 1 x invalid JSON" in result.stderr


def test_a_loss_that_is_not_finite(finished, tmp_path):
  """A learning rate past all reason: the last good checkpoint stays, and is good."""
  _, settings = finished
  settings = settings | {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": 0.0}
  settings = settings | {"schedule__warmup_steps": 6, "checkpoint_every": 1}
  line = one_line(train_runs.train(tmp_path, **settings), begun=True)
  assert "loss" in line and "The last good checkpoint is step" in line
  assert "nan" in line or "inf" in line
  assert all(
    json.loads(text) for text in pathlib.Path(tmp_path / "metrics.jsonl").open(encoding="utf-8")
  )
