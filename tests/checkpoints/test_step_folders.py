"""Which of a folder's checkpoints is meant, for everything that opens one."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import gptneo_jax
from gptneo_jax import convert, evaluate, generate
from gptneo_jax.checkpoints.folder import save_config
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.step_folders import (
  RUN_CONFIG,
  CheckpointError,
  best_step,
  find_checkpoint,
  latest_step,
  lower_is_better,
)
from gptneo_jax.errors import UserError
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params
from tests.helpers import hf_folders
from tests.helpers.data_rows import byte_tokenizer

CONFIG = gptneo_jax.ModelConfig(
  vocab_size=257, max_position_embeddings=32, hidden_size=16, num_layers=2, num_heads=2,
  window_size=8,
)  # fmt: skip
ACCURACIES = {100: 0.5, 200: 0.25, 300: 0.75, 400: 0.75}
LOSSES = {100: 3.0, 200: 1.0, 300: float("nan"), 400: 2.0}


def _params(step):
  chance = np.random.default_rng(step)
  draw = lambda x: chance.normal(0, 0.3, x.shape).astype(x.dtype)
  return jax.tree.map(draw, abstract_params(heads.build(CONFIG)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's folder: four checkpoints, of which 200 is the best and 400 the newest."""
  folder = tmp_path_factory.mktemp("run")
  save_config(folder, CONFIG)
  byte_tokenizer().save_pretrained(folder)
  checkpointer = Checkpointer(str(folder), keep_latest=9)
  for step, loss in LOSSES.items():
    checkpointer.save(
      step, params=_params(step), optimizer={"step": np.int32(step)}, data_state={},
      metrics={"eval/loss": loss, "eval/accuracy": ACCURACIES[step]},
    )  # fmt: skip
  checkpointer.close()
  return folder


def step_of(lm):
  """The step that a model's weights are of."""
  return next(s for s in LOSSES if np.array_equal(lm.params["wte"], _params(s)["wte"]))


def test_a_checkpoint_is_meant_by_folder_step_or_path(run):
  assert step_of(gptneo_jax.load(run)) == latest_step(run) == 400
  assert step_of(gptneo_jax.load(run, step="best")) == best_step(run) == 200
  assert step_of(gptneo_jax.load(run, step=100)) == 100
  lm = gptneo_jax.load(str(run / "300") + "/")
  assert step_of(lm) == 300 and lm.tokenizer is not None
  assert find_checkpoint("EleutherAI/gpt-neo-125m") == ("EleutherAI/gpt-neo-125m", None)


def test_the_settings_of_a_run_say_what_is_best(run, tmp_path):
  folder = shutil.copytree(run, tmp_path / "run")
  for settings, step in (
    ({"config": {"best_metric": "eval/accuracy"}}, 300),
    ({"config": {"best_metric": "eval/loss"}}, 200),
    ({"config": {}}, 200),  # of a run before there was a choice
  ):
    (folder / RUN_CONFIG).write_text(json.dumps(settings))
    assert best_step(folder) == step
    assert step_of(gptneo_jax.load(folder / "best")) == step
    assert step_of(gptneo_jax.load(folder, step="best")) == step
  (folder / RUN_CONFIG).write_text('{"config": {"best_metric": "eval/f1"}}')
  with pytest.raises(CheckpointError, match=r"none of .* has an eval/f1"):
    best_step(folder)
  assert find_checkpoint(tmp_path / "best") == (str(tmp_path / "best"), None)


@pytest.mark.parametrize(
  ("metric", "lower"),
  [
    ("eval/loss", True), ("eval/bits_per_byte/Law", True), ("eval/perplexity", True),
    ("eval/mean_squared_error", True), ("eval/accuracy", False), ("eval/f1", False),
    ("eval/exact_match", False), ("eval/lambada_openai/perplexity", True),
    ("eval/matthews_correlation", False),
  ],
)  # fmt: skip
def test_the_direction_is_in_the_name(metric, lower):
  assert lower_is_better(metric) == lower


def test_home_in_the_path_of_a_checkpoint(run, monkeypatch):
  monkeypatch.setenv("HOME", str(run.parent))
  assert find_checkpoint(f"~/{run.name}") == (str(run), None)
  assert find_checkpoint(f"~/{run.name}/200") == (str(run), 200)
  assert gptneo_jax.load(f"~/{run.name}").config == CONFIG


def test_what_is_not_there(run, tmp_path):
  for name, step, message in (
    (run, 7, r"no checkpoint 7 in .*; there are \[100, 200, 300, 400\]"),
    (run, "newest", "step 'newest' is neither a number nor 'best'"),
    (run / "100", 200, "that is step 100 of"),
    (run / "7", None, "no such folder"),
    (hf_folders.save(tmp_path / "hf", hf_folders.config()), 100, "no checkpoint in"),
  ):
    with pytest.raises(UserError, match=message):
      gptneo_jax.load(name, step=step)
  checkpointer = Checkpointer(str(tmp_path / "unmeasured"))
  checkpointer.save(1, params={"w": np.ones(2)}, optimizer={"w": np.ones(2)}, data_state={})
  checkpointer.close()
  with pytest.raises(CheckpointError, match=r"none of .* has an eval/loss; there are \[1\]"):
    best_step(tmp_path / "unmeasured")


def test_a_run_folder_may_be_a_number(run, tmp_path):
  (tmp_path / "2024").symlink_to(run)
  assert step_of(gptneo_jax.load(tmp_path / "2024")) == 400


def test_programs_take_it(run, tmp_path, capsys):
  best = ["--checkpoint", str(run), "--step", "best"]
  assert generate.main([*best, "--prompt", "ab", "--max_new_tokens", "3"]) == 0
  lm = gptneo_jax.load(run, step=200)
  assert capsys.readouterr().out == f"ab{lm.generate('ab', max_new_tokens=3).texts[0]}\n"

  text = "some text, which is short"
  (tmp_path / "text.txt").write_text(text)
  output = ["--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "r.json")]
  assert evaluate.main([*best, *output]) == 0
  report = json.loads((tmp_path / "r.json").read_text())
  assert report["checkpoint"]["step"] == 200
  measured = report["results"]["data"]
  assert measured["loss"] * measured["tokens"] == pytest.approx(lm.score([text])[0].nll, rel=1e-6)
  assert any(file.startswith("200/params/") for file in report["checkpoint"]["sha256"])


def test_conversion_takes_it(run, tmp_path):
  for step, source in ((200, [str(run), "--step=best"]), (100, [str(run / "100")])):
    folder = tmp_path / str(step)
    assert convert.main(["orbax-to-hf", source[0], str(folder), *source[1:]]) == 0
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(tensors["transformer.wte.weight"], _params(step)["wte"])
    assert f"Checkpoint {step} of" in (folder / "README.md").read_text()
