"""run_config.json: what it holds, what is said of a change, and what no run can change."""

import json
import subprocess

import numpy as np
import pytest

from gptneo_jax import data
from gptneo_jax.checkpoints.folder import save_config
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.step_folders import RUN_CONFIG
from gptneo_jax.errors import UserError
from gptneo_jax.training import config_file, parse_config, run_record

COMMAND = ["python", "-m", "gptneo_jax.train", "--config", "configs/tiny.py"]


def _config(**changes):
  config = config_file.load("configs/tiny.py")
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config


def _record(**changes):
  config = _config(**changes)
  parts = parse_config.read(config)
  return run_record.of(config, parts.data.num_streams, COMMAND), parts.model


def _save(folder, step=40):
  save_config(folder, parse_config.read(_config()).model)
  checkpointer = Checkpointer(str(folder))
  tree = {"w": np.ones(2)}
  checkpointer.save(step, params=tree, optimizer=tree, data_state={})
  checkpointer.close()


@pytest.fixture
def run(tmp_path):
  """The folder of a run at step 40."""
  record, _ = _record()
  _save(tmp_path)
  run_record.write(tmp_path, record, [], 0)
  return tmp_path


def test_what_is_recorded(run, repository):
  record = json.loads((run / RUN_CONFIG).read_text())
  assert record["config"]["optimizer"]["learning_rate"] == 8e-3
  assert record["config"]["model"]["attention_pattern"] == ["global", "local"]
  assert record["command"] == COMMAND
  assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "gptneo_jax"} <= {
    *record["versions"]
  }
  if (repository / ".git").exists():
    head = subprocess.run(
      ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert record["commit"].rstrip("+") == head.stdout.strip()
  assert list(run.iterdir()).count(run / f"{RUN_CONFIG}.part") == 0


def test_a_new_folder_has_nothing_to_compare(tmp_path):
  assert run_record.changes(tmp_path / "new", *_record(batch_size=4)) == []


def test_what_changed_is_said_and_kept(run):
  record, model = _record(
    optimizer__learning_rate=5e-4, steps=3000, model__resid_dropout=0.1, model__vocab_multiple=8,
    mesh__fsdp=2, eval_every=7, optimizer__clip_norm=0.0,
  )  # fmt: skip
  record["versions"]["jax"], record["commit"] = "99.1", "abc"
  before = json.loads((run / RUN_CONFIG).read_text())
  lines = run_record.changes(run, record, model)
  assert "optimizer.learning_rate: 0.008 -> 0.0005" in lines and "steps: 600 -> 3000" in lines
  assert f"version of jax: {before['versions']['jax']} -> 99.1" in lines
  assert f"commit: {before['commit']} -> abc" in lines and len(lines) == 9
  run_record.write(run, record, lines, 40)
  assert run_record.changes(run, record, model) == []
  run_record.write(run, record, [], 60)
  after = json.loads((run / RUN_CONFIG).read_text())
  assert after["config"]["steps"] == 3000
  assert after["changes"] == [f"step 40: {line}" for line in lines]


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    (
      {"batch_size": 4, "data__num_streams": 4},
      "batch_size 8, not 4: the order of its data follows from that",
    ),
    ({"seq_len": 64}, "seq_len 256, not 64"),
    ({"seed": 1}, "seed 0, not 1"),
    ({"data__num_streams": 2}, r"data\.num_streams 8, not 2"),
    ({"data__shuffle_window": 9}, r"data\.shuffle_window 256, not 9"),
    ({"optimizer__name": "adafactor"}, r"optimizer\.name 'muon', not 'adafactor': the optimizer"),
    ({"init_from": "gpt2"}, "init_from '', not 'gpt2': it resumes from its own checkpoints"),
  ],
)
def test_what_a_run_keeps(run, changes, reason):
  with pytest.raises(UserError, match=reason) as caught:
    run_record.changes(run, *_record(**changes))
  assert "What may change: steps, learning rate" in str(caught.value)
  assert f"--workdir NEW --config.init_from={run}" in str(caught.value)


def test_another_model(run):
  with pytest.raises(UserError, match=r"different model \(num_layers: 4 != 2\); choose another"):
    run_record.changes(run, *_record(model__num_layers=4))


def test_weights_that_are_no_run_are_left_as_they_are(tmp_path):
  """A converted model as --workdir: nothing to resume, and nothing is moved aside."""
  _save(tmp_path, step=0)
  for file in sorted((tmp_path / "0" / "optimizer").rglob("*"), reverse=True):
    file.unlink() if file.is_file() else file.rmdir()
  (tmp_path / "0" / "optimizer").rmdir()
  with pytest.raises(UserError, match=r"weights of a model, .* --config\.init_from="):
    run_record.changes(tmp_path, *_record())


def test_a_hugging_face_model_is_not_written_over(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
  with pytest.raises(UserError, match=r"another program's config\.json, .* --config\.init_from="):
    run_record.changes(tmp_path, *_record())
  (tmp_path / "config.json").unlink()
  save_config(tmp_path, parse_config.read(_config()).model)  # of a start without a checkpoint yet
  assert run_record.changes(tmp_path, *_record()) == []


def test_a_record_that_is_damaged_is_one_line(run):
  (run / RUN_CONFIG).write_text('{"config": ')
  with pytest.raises(UserError, match=r"run_config\.json cannot be read .*; without it the run"):
    run_record.changes(run, *_record())
  (run / RUN_CONFIG).unlink()
  assert run_record.changes(run, *_record()) == []


def test_a_data_set_of_the_hub_that_moved_is_said(run, monkeypatch):
  commits = {"org/set": "1" * 40, "org/other": "2" * 40}
  monkeypatch.setattr(data, "commit_of_dataset", lambda name: commits.get(name, ""))
  monkeypatch.setattr(data, "commit_of_model", lambda name: "3" * 40 if name == "org/model" else "")
  mixture = ((1.0, "datasets", "org/set#train"), (1.0, "datasets", "org/other"))
  config = _config(data__source="mixture", data__mixture=mixture, init_from="org/model")
  hub = run_record.hub_commits(config)
  assert hub == {
    "init_from": "3" * 40, "data set org/set": "1" * 40, "data set org/other": "2" * 40
  }  # fmt: skip
  run_record.write(run, {"hub": hub}, [], 0)
  commits["org/set"] = "9" * 40
  record = {"hub": run_record.hub_commits(config) | {"init_from": "8" * 40}}
  assert run_record.moved(run, record) == [f"commit of data set org/set: {'1' * 40} -> {'9' * 40}"]
  assert record["hub"]["init_from"] == "3" * 40  # its weights are those that it began with
