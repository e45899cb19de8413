"""A run as Python starts it: saved before it is evaluated, stopped anywhere, and resumed."""

import os
import signal
import subprocess
import sys

import pytest

from gptneo_jax import data, train
from gptneo_jax.checkpoints.manager import latest_step
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.state import init_state
from gptneo_jax.train import run
from gptneo_jax.training import parse_config, validation
from gptneo_jax.training.compiled_step import TooLarge
from gptneo_jax.training.setup import setup_run
from tests.helpers.small_runs import evaluated, exact, lines, small_config, texts, write_jsonl


@pytest.fixture
def config(tmp_path):
  return small_config(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Lines of the run that nothing stopped; the config is always the same."""
  folder = tmp_path_factory.mktemp("whole")
  assert run(small_config(folder), str(folder / "run")) == 0
  return exact(folder / "run")


def test_an_evaluation_is_stored_with_its_checkpoint(config, tmp_path):
  assert run(config, str(tmp_path / "run")) == 0
  by_step = {line["step"]: line for line in lines(tmp_path / "run")}
  assert [step for step in by_step if "eval/loss" in by_step[step]] == [2, 4, 6]
  for step in (4, 6):
    stored = evaluated(tmp_path / "run", step)
    assert {"step": step, **stored} == by_step[step]
  epochs = [by_step[step]["data/epoch"] for step in range(1, 7)]
  assert 0 < epochs[0] < epochs[5] and sorted(epochs) == epochs


@pytest.mark.parametrize("at", [2, 4])  # where only an evaluation is due, and where a save is too
def test_an_evaluation_that_fails_loses_no_step(at, config, whole, tmp_path, monkeypatch):
  genuine, calls = validation.perplexity.evaluate, []

  def failing(predict, batches):
    calls.append(1)
    if len(calls) == at // 2:
      raise RuntimeError("the evaluation fails")
    return genuine(predict, batches)

  with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="the evaluation fails"):
    patched.setattr(validation.perplexity, "evaluate", failing)
    run(config, str(tmp_path / "run"))
  assert latest_step(tmp_path / "run") == at
  assert run(config, str(tmp_path / "run")) == 0
  assert exact(tmp_path / "run") == whole
  assert at == 2 or "eval/loss" in evaluated(tmp_path / "run", at)


@pytest.mark.parametrize(
  ("sent", "status", "batch", "step"),
  [(signal.SIGTERM, 143, 1, 2), (signal.SIGTERM, 143, 3, 4), (signal.SIGINT, 130, 6, 6)],
)
def test_a_signal_ends_an_evaluation_between_batches(
  sent, status, batch, step, config, whole, tmp_path, monkeypatch, capsys
):
  """At a step that is not saved, at one that is, and at the last; two batches an evaluation."""
  genuine, batches = validation.Validation._nll, []

  def signalled(self, *arguments):
    batches.append(1)
    if len(batches) == batch:
      os.kill(os.getpid(), sent)
    return genuine(self, *arguments)

  config.eval.batch_size = 5
  with monkeypatch.context() as patched:
    patched.setattr(validation.Validation, "_nll", signalled)
    assert run(config, str(tmp_path / "run")) == status
  assert f"stopped by {sent.name}, saved at step {step}" in capsys.readouterr().out
  assert latest_step(tmp_path / "run") == step
  config.eval.batch_size = 8  # makes no difference to the sums
  assert run(config, str(tmp_path / "run")) == 0
  stopped = exact(tmp_path / "run")
  assert [line.keys() for line in stopped] == [line.keys() for line in whole]
  for key in ("train/loss", "data/epoch"):
    assert [line[key] for line in stopped] == [line[key] for line in whole]


def test_a_run_that_is_done_has_nothing_to_do(config, tmp_path, capsys):
  config.update(steps=2, eval_every=0)
  assert run(config, str(tmp_path / "run")) == 0
  before = (tmp_path / "run" / "metrics.jsonl").read_text()
  assert run(config, str(tmp_path / "run")) == 0
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
  assert "done: step 2" in capsys.readouterr().out


def test_the_tokenizer_is_that_of_the_config_until_there_is_a_checkpoint(config, tmp_path, capsys):
  folders = {}
  for size in (270, 280):
    learned = data.load_tokenizer(
      "train", documents=[data.Document(" ".join(texts(40)), "", "f:1")], vocab_size=size
    )
    folders[size] = str(tmp_path / f"tokenizer {size}")
    data.save_tokenizer(learned, folders[size])
  workdir = str(tmp_path / "run")
  data.save_tokenizer(data.saved_tokenizer(folders[270]), workdir)  # of a start that failed
  config.update(steps=1, eval_every=0)
  config.data.tokenizer = folders[280]
  assert run(config, workdir) == 0
  assert f"tokenizer: 280 ids, {folders[280]}" in capsys.readouterr().out
  assert data.vocabulary_size(data.saved_tokenizer(workdir)) == 280
  config.data.tokenizer = folders[270]
  assert run(config, workdir) == 0
  said = f"280 ids, of the run, not data.tokenizer {folders[270]}, which is another (270 ids)"
  assert said in capsys.readouterr().out
  # Weights of the run, and no tokenizer named: its own.
  config.update(init_from=workdir)
  config.data.tokenizer = "train"
  assert run(config, str(tmp_path / "second")) == 0
  assert f"tokenizer: 280 ids, of {workdir}" in capsys.readouterr().out


@pytest.fixture
def drawn(config):
  """Makes the validation of a run, which draws a batch and the sample's prompt, and no more."""

  def draw() -> validation.Validation:
    ours = setup_run(config)
    tokenizer = data.load_tokenizer(
      "train", documents=data.mixed_documents(ours.data_config), vocab_size=300
    )
    return validation.Validation(ours, tokenizer)

  return draw


@pytest.mark.parametrize(
  ("seq_len", "sample_tokens", "prompt", "expected"),
  [
    (16, 16, "a b c d e f g h i j k l m n o p", (8, 8)),  # as many as seq_len
    (16, 200, "", (8, 8)),  # more
    (16, 4, "a b c", None),
    (2, 1, "a b c", (1, 1)),
    (1, 5, "a", (1, 0)),  # no room: no sample
  ],
)
def test_the_sample_fits_the_length(seq_len, sample_tokens, prompt, expected, config, drawn):
  config.seq_len = seq_len
  config.eval.update(sample_tokens=sample_tokens, sample_prompt=prompt)
  validation_ = drawn()
  length, new = len(validation_._prompt), validation_._new_tokens
  assert length >= 1 and length + new <= seq_len
  assert (length, new) == (expected or (length, sample_tokens))


def test_a_run_that_is_to_stop_ends_tasks_between_batches(config, drawn):
  pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness")
  config.eval.update(tasks=("stdlib_cloze",), task_items=4)
  measure, ours = drawn(), setup_run(config)
  params = init_state(ours.module, ours.optimizer, ours.mesh, 0).params
  asked = []
  results, _ = measure(params, lambda: bool(asked.append(1)))
  assert any(key.startswith("eval/stdlib_cloze/") for key in results)
  in_documents = len(list(measure._batches))
  assert len(asked) > in_documents
  last = len(asked)
  asked.clear()
  assert measure(params, lambda: asked.append(1) or len(asked) == last) is None


def test_a_first_validation_document_without_text(config, drawn, tmp_path):
  write_jsonl(tmp_path / "val.jsonl", ["", " ", "something to go on from"])
  config.eval.sample_tokens = 3
  validation_ = drawn()
  assert validation_._tokenizer.decode(validation_._prompt).startswith("something")


def test_validation_without_text_is_said_before_the_first_step(config, tmp_path):
  write_jsonl(tmp_path / "val.jsonl", ["", ""])
  with pytest.raises(UserError, match=r"val\.jsonl holds no document"):
    run(config, str(tmp_path / "run"))
  assert latest_step(tmp_path / "run") is None


def test_a_sample_that_fails_is_a_line(config, tmp_path, monkeypatch, capsys):
  def failing(*_, **__):
    raise ValueError("no sampling today")

  monkeypatch.setattr(LanguageModel, "generate", failing)
  config.update(steps=2, eval_every=1)
  config.eval.sample_tokens = 4
  assert run(config, str(tmp_path / "run")) == 0
  assert "(no sample of text: no sampling today)" in capsys.readouterr().out


def test_training_on_everything(config, tmp_path, capsys):
  config.update(steps=2, eval_every=1)
  config.data.update(validation_path="", validation_fraction=0.0, test_fraction=0.0)
  config.eval.sample_tokens = 4
  assert run(config, str(tmp_path / "run")) == 0
  assert "no validation: trains on everything" in capsys.readouterr().out
  assert not any(key.startswith("eval/") for line in lines(tmp_path / "run") for key in line)


@pytest.mark.parametrize(
  "settings",
  [
    {"eval.documents": -1}, {"eval.batch_size": -4}, {"eval.sample_tokens": -5},
    {"eval.task_items": -1}, {"eval_every": -1}, {"checkpoint_every": -1}, {"profile.steps": -1},
  ],
)  # fmt: skip
def test_ranges(settings, config):
  config.update_from_flattened_dict(settings)
  ((name, value),) = settings.items()
  with pytest.raises(UserError, match=f"{name} is {value}; it must be at least 0"):
    parse_config.read(config)


@pytest.mark.processes
def test_two_programs_in_one_process():
  """Their flags are defined when they run, not when they are imported."""
  program = (
    "from absl import flags; from gptneo_jax import plan, train; print('workdir' in flags.FLAGS)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
  )
  assert done.stdout == "False\n", done.stderr


def test_a_run_goes_on_in_less_where_the_compiler_finds_no_room(
  config, tmp_path, monkeypatch, capsys
):
  """The first program is refused, as TPU's compiler would; the run says so and takes another."""
  config.update(grad_accumulation=0, steps=2, eval_every=0)
  config.model.remat = "auto"
  compile_step, refused = train.compile_step, []

  def refusing(run):
    if not refused:
      refused.append(run)
      raise TooLarge("Ran out of memory in memory space hbm.")
    return compile_step(run)

  monkeypatch.setattr(train, "compile_step", refusing)
  assert run(config, str(tmp_path / "run")) == 0
  said = capsys.readouterr().out
  assert "a batch in 1 part(s) (chosen) of 4 row(s) on a device, remat none (chosen)" in said
  assert "the compiler found no room for that; a batch in " in said
  assert latest_step(str(tmp_path / "run")) == 2 and refused[0].config.model.remat == "none"
