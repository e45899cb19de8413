"""The face of a task: found by name, and all that the loop, the step and the planner know of it."""

import ast
import json
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest

import gptneo_jax
from gptneo_jax import plan
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.state import abstract_state, init_state
from gptneo_jax.steps import make_train_step, place_batch
from gptneo_jax.train import run
from gptneo_jax.training import run_config, setup, tasks
from gptneo_jax.training.compiled_step import compile_step, fit
from tests.helpers import last_token_task

PACKAGE = pathlib.Path(gptneo_jax.__file__).parent


# --- by name --------------------------------------------------------------------------------------


def test_a_task_is_a_module():
  assert "lm" in tasks.names()
  face = [
    part
    for part in (*vars(tasks.Task), "HEADS", "POSITIONS_RESTART", "PRETRAINS")
    if not part.startswith("_")
  ]
  assert "make_loss" in face
  for name in tasks.names():
    assert not [part for part in face if not hasattr(tasks.find(name), part)]


@pytest.mark.parametrize("name", ["ml", "LM", "", ".", "lm.lm", "classification", "__init__"])
def test_a_task_that_does_not_exist(name):
  with pytest.raises(UserError) as caught:
    tasks.find(name)
  assert str(caught.value).startswith(f"task is {name!r}") and "'lm'" in str(caught.value)
  assert ("did you mean lm?" in str(caught.value)) == (name in ("LM", "lm.lm"))


def test_what_a_task_fails_to_import_is_not_hidden(monkeypatch, tmp_path):
  (tmp_path / "broken.py").write_text("import a_module_that_nobody_has")
  monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
  with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
    tasks.find("broken")


# --- nothing else knows what is learned -----------------------------------------------------------

GENERAL = [
  "train.py", "plan.py", "steps.py", "state.py", "training/setup.py", "training/compiled_step.py",
  "training/step_report.py", "training/fitting.py", "training/multihost.py",
  "training/tasks/__init__.py",
  *(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "planning").glob("*.py")),
]  # fmt: skip
OF_LANGUAGE_MODELLING = {
  "TrainBatches", "KeptBatches", "EvaluationBatches", "chunked_cross_entropy", "next_token",
  "losses", "validation", "perplexity", "lm", "token_losses", "loss_sums", "output_table",
}  # fmt: skip


def names_in(source: str) -> set[str]:
  """What a module imports or calls by name, and its texts of one word."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      found |= {part for name in node.names for part in name.name.split(".")}
      found |= set((getattr(node, "module", None) or "").split("."))
    elif isinstance(node, ast.Attribute):
      found.add(node.attr)
    elif isinstance(node, ast.Name):
      found.add(node.id)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      found.add(node.value)
  return found


@pytest.mark.parametrize("path", GENERAL)
def test_the_machinery_knows_no_task(path):
  assert not names_in((PACKAGE / path).read_text(encoding="utf-8")) & OF_LANGUAGE_MODELLING


def test_the_search_for_names_finds_them():
  found = names_in('from a.validation import b; c.TrainBatches(d == "lm")')
  assert found & OF_LANGUAGE_MODELLING == {"validation", "TrainBatches", "lm"}


# --- another task ---------------------------------------------------------------------------------


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(sys.modules, f"{tasks.__name__}.last_token", last_token_task)
  config = run_config.base(
    ModelConfig(
      hidden_size=16, num_layers=2, num_heads=2, vocab_size=300, max_position_embeddings=16,
      window_size=4, head="sequence_classification", pad_token_id=0,
    )
  )  # fmt: skip
  config.update(task="last_token", steps=8, batch_size=8, eval_every=4, checkpoint_every=4)
  config.update(log_every=1)
  config.optimizer.learning_rate = 1e-2
  config.schedule.update(name="constant", warmup_steps=0)
  config.data.update(source="stdlib", path="", tokenizer="train")
  return config


def lines(workdir) -> list[dict]:
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")}
    for line in (workdir / "metrics.jsonl").open()
  ]


def test_the_loop_trains_evaluates_and_resumes(config, tmp_path, capsys):
  assert run(config, str(tmp_path / "run")) == 0
  said = capsys.readouterr().out
  assert "training data: rows at random, without end" in said and "step 8: accuracy 0." in said
  written = lines(tmp_path / "run")
  assert [line["step"] for line in written] == list(range(1, 9))
  assert {"train/loss", "train/accuracy", "train/grad_norm", "data/epoch"} < {*written[0]}
  assert "train/perplexity" not in written[0]
  assert [line["step"] for line in written if "eval/accuracy" in line] == [4, 8]

  config.steps = 5
  assert run(config, str(tmp_path / "parts")) == 0
  config.steps = 8
  assert run(config, str(tmp_path / "parts")) == 0
  assert "resuming from step 5" in capsys.readouterr().out
  # The evaluation at the end of the first part is one more.
  once = lambda line: {k: v for k, v in line.items() if line["step"] != 5 or k[:5] != "eval/"}
  assert [once(line) for line in lines(tmp_path / "parts")] == written
  one, other = (gptneo_jax.load(str(tmp_path / name)) for name in ("run", "parts"))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, other.params))
  assert one.config.head == "sequence_classification"

  config.seed = 1
  with pytest.raises(UserError, match="seed"):
    run(config, str(tmp_path / "run"))


def test_it_learns(config, tmp_path):
  config.update(steps=300, batch_size=24, eval_every=0, checkpoint_every=0, log_every=50)
  assert run(config, str(tmp_path / "run")) == 0
  assert lines(tmp_path / "run")[-1]["eval/accuracy"] > 0.9


def test_parts_weigh_what_they_hold(config):
  """Rows of no weight lie unevenly over the parts; one part has none that counts."""
  steps_of, found = {}, {}
  ours, optimizer = setup.setup_run(config), optax.sgd(1.0)
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, abstract_state(ours.module, optimizer, ours.mesh)
  )
  for parts in (1, 4):
    steps_of[parts] = make_train_step(
      ours.task.make_loss(ours.config, ours.module), optimizer, shardings, ours.mesh,
      accumulation=parts,
    )  # fmt: skip
  rows = last_token_task.draw(config, 1)
  rows["weights"] = np.array([0, 1, 1, 1, 0, 0, 1, 0], np.float32)  # rows 0 and 4 are a part
  batch = place_batch(rows, ours.mesh, 8)
  for parts, step in steps_of.items():
    state = init_state(ours.module, optimizer, ours.mesh, 0)
    found[parts] = step(state, batch)
  (one, metrics), (four, in_parts) = found[1], found[4]
  assert metrics.keys() == in_parts.keys() == {"loss", "accuracy", "grad_norm"}
  for name in metrics:
    np.testing.assert_allclose(metrics[name], in_parts[name], rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, four.params)
  # By hand: the mean over the four rows that count.
  start = init_state(ours.module, optimizer, ours.mesh, 0)
  logits = np.asarray(
    ours.module.apply({"params": start.params}, rows["inputs"], method="outputs"), np.float64
  )
  nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), rows["labels"]]
  np.testing.assert_allclose(metrics["loss"], nll[rows["weights"] > 0].mean(), rtol=1e-5)


def test_the_planner_compiles_it(config, capsys):
  ours, step = fit(setup.setup_run(config), compile_step)
  batch = place_batch(last_token_task.draw(config, 1), ours.mesh, config.batch_size)
  _, metrics = step(init_state(ours.module, ours.optimizer, ours.mesh, 0), batch)
  assert metrics["accuracy"].shape == ()
  assert plan.run(config, "here", config_path="last_token.py") == 0
  page = capsys.readouterr().out
  assert "Compiled in" in page and page.splitlines()[-1].startswith("fits: ")


def test_its_head_and_its_data_are_checked(config, tmp_path):
  config.model.head = "lm"
  with pytest.raises(UserError, match="'lm', which task 'last_token' does not train; it trains"):
    setup.setup_run(config)
  config.model.head = "sequence_classification"
  config.data.update(source="jsonl", path="missing")
  with pytest.raises(UserError, match="data: missing: no such rows"):
    run(config, str(tmp_path / "run"))
