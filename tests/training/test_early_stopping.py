"""The best evaluation and the end of a run that has no better one, whole or resumed."""

import json
import os
import signal

import pytest

from gptneo_jax import data, train
from gptneo_jax.checkpoints.step_folders import best_step, saved_steps
from gptneo_jax.errors import UserError
from gptneo_jax.training import run_config
from gptneo_jax.training.early_stopping import BestSoFar
from tests.helpers.small_runs import exact, lines, small_config
from tests.helpers.small_tokenizers import trained_tokenizer
from tests.helpers.train_runs import arrays, assert_bitwise_equal

ACCURACIES = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75, 10: 1.0, 12: 0.0}


@pytest.mark.parametrize(
  ("metric", "values", "best", "over_at"),
  [
    ("eval/loss", (3.0, 2.0, 2.0, 2.5), (2.0, 2), 4),
    ("eval/accuracy", (0.1, 0.1, 0.2, 0.2, 0.0), (0.2, 3), 5),
    ("eval/loss", (3.0, float("nan"), 2.9, float("inf"), float("nan")), (2.9, 3), 5),
    ("eval/f1", (float("nan"), float("nan")), (None, 0), 2),
    ("eval/f1", (0.0, 0.1, 0.2), (0.2, 3), None),
  ],
)
def test_the_best_and_the_end(metric, values, best, over_at):
  """The same if its state goes through JSON after each evaluation, which is counted once."""
  whole, resumed = BestSoFar(metric, 2), BestSoFar(metric, 2)
  ended = None
  for step, value in enumerate(values, start=1):
    whole.update(step, {metric: value})
    resumed.update(step, {metric: value})
    state = json.loads(json.dumps(resumed.get_state()))
    resumed = BestSoFar(metric, 2)
    resumed.set_state(state)
    resumed.update(step, {metric: value})
    assert resumed.get_state() == whole.get_state()
    ended = ended or (step if whole.is_over else None)
  assert (whole.value, whole.step) == best and ended == over_at
  other = BestSoFar("eval/other", 2)
  other.set_state(whole.get_state())
  assert other.value is None and not other.is_over


def test_without_patience_a_run_has_no_end():
  best = BestSoFar("eval/loss", 0)
  for step in range(1, 9):
    best.update(step, {"eval/loss": 1.0})
  assert not best.is_over and best.step == 1


def scripted(monkeypatch, failing=None, signalled=None):
  """Evaluations give ACCURACIES; one fails, or is stopped."""

  def evaluate(evaluation, stop, reports, say, step, state):
    if step == failing:
      raise RuntimeError("the evaluation fails")
    if step == signalled:
      os.kill(os.getpid(), signal.SIGTERM)
      return None
    return {"eval/loss": 1.0, "eval/accuracy": ACCURACIES[step]}

  monkeypatch.setattr(train, "_evaluate", evaluate)


def config_of(folder, **changes):
  settings = {"steps": 12, "patience": 2, "best_metric": "eval/accuracy", "keep_latest": 1}
  return small_config(folder, **settings | changes)


def timeless(workdir):
  """The summary without what depends on the clock."""
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["train_runtime"] > 0
  return {k: v for k, v in summary.items() if not k.endswith(("_runtime", "_per_second"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Folder of the run that nothing interrupts."""
  folder = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patched:
    scripted(patched)
    assert train.run(config_of(folder), str(folder / "run")) == 0
  return folder / "run"


def test_a_run_ends_where_nothing_gets_better(whole, capsys, monkeypatch):
  assert [line["step"] for line in lines(whole)] == list(range(1, 9))
  # 4 and 8 are as good: the first is the best. 8 is saved because the run ends there.
  assert saved_steps(whole) == [4, 8] and best_step(whole) == 4
  summary = timeless(whole)
  assert summary["steps"] == 8 and summary["best_step"] == 4 and summary["best_metric"] == 0.75
  assert summary["eval_accuracy"] == 0.75 and summary["metric_for_best_model"] == "eval/accuracy"
  losses = [line["train/loss"] for line in lines(whole)]
  assert summary["train_loss"] == pytest.approx(sum(losses) / 8)
  # Started again it has nothing to do.
  scripted(monkeypatch)
  before = (whole / "summary.json").read_text()
  assert train.run(config_of(whole.parent), str(whole)) == 0
  assert (
    "done: step 8 of 12, no eval/accuracy better than 0.75 of step 4 in 2"
    in capsys.readouterr().out
  )
  assert (whole / "summary.json").read_text() == before


@pytest.mark.parametrize("how", ["failing", "signalled"])
@pytest.mark.parametrize("step", [2, 6, 8])
def test_resumed_it_ends_at_the_same_step(how, step, whole, tmp_path, monkeypatch):
  config, workdir = config_of(tmp_path), tmp_path / "run"
  with monkeypatch.context() as patched:
    scripted(patched, **{how: step})
    if how == "failing":
      with pytest.raises(RuntimeError):
        train.run(config, str(workdir))
    else:
      assert train.run(config, str(workdir)) == 143
  assert not (workdir / "summary.json").exists()
  scripted(monkeypatch)
  assert train.run(config, str(workdir)) == 0
  assert exact(workdir) == exact(whole)
  assert timeless(workdir) == timeless(whole)
  assert saved_steps(workdir) == [4, 8]


def test_more_patience_goes_on(whole, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  scripted(monkeypatch)
  assert train.run(config_of(tmp_path), str(workdir)) == 0
  assert train.run(config_of(tmp_path, patience=3), str(workdir)) == 0
  assert timeless(workdir)["steps"] == 12 and timeless(workdir)["best_step"] == 10
  # 10 is the best, and is no step of checkpoint_every: the best of those that are saved is kept.
  assert saved_steps(workdir) == [4, 12]


@pytest.mark.parametrize("checkpoint_every", [2, 4])
def test_a_metric_that_is_not_there(checkpoint_every, tmp_path, monkeypatch):
  config = config_of(tmp_path, best_metric="eval/acuracy", checkpoint_every=checkpoint_every)
  scripted(monkeypatch)
  said = (
    "best_metric is 'eval/acuracy', which the evaluation does not give; did you mean eval/accuracy?"
  )
  with pytest.raises(UserError) as caught:
    train.run(config, str(tmp_path / "run"))
  assert str(caught.value).startswith(said) and "it gives eval/accuracy, eval/loss" in str(
    caught.value
  )
  assert saved_steps(tmp_path / "run") == [2]
  with pytest.raises(UserError, match="which the evaluation does not give"):
    train.run(config, str(tmp_path / "run"))
  config.best_metric = "eval/accuracy"
  assert train.run(config, str(tmp_path / "run")) == 0
  assert timeless(tmp_path / "run")["best_step"] == 4


def of_examples(folder):
  """Labels that nothing says: what is learned is soon no better on what is held out."""
  path, tokenizer = folder / "data.jsonl", folder / "tokenizer"
  records = ({"text": f"{n} dogs " * (1 + n % 5), "label": "ab"[n * n % 7 % 2]} for n in range(70))
  path.write_text("\n".join(map(json.dumps, records)))
  data.save_tokenizer(trained_tokenizer(), str(tokenizer))
  config = run_config.finetune("sequence_classification", head="sequence_classification").unlock()
  config.model.update(
    hidden_size=16, num_layers=2, num_heads=2, vocab_size=320, max_position_embeddings=64,
    resid_dropout=0.1,
  )  # fmt: skip
  config.update(adopt_model=False, init_from="", seq_len=64, batch_size=4, epochs=8.0, log_every=1)
  config.update(patience=2, best_metric="eval/accuracy", grad_accumulation=2)
  config.model.remat = "none"
  config.data.update(path=str(path), tokenizer=str(tokenizer), validation_fraction=0.3)
  config.optimizer.learning_rate = 3e-3
  return config.lock()


def test_stopped_within_epochs_of_packed_examples(tmp_path, monkeypatch, capsys):
  """Twice, each time in the middle of one: the same bits, best checkpoint and end."""
  config, place, placed = of_examples(tmp_path), train.place_batch, []
  assert train.run(config, str(tmp_path / "whole")) == 0
  found = lines(tmp_path / "whole")
  epoch = min(line["step"] for line in found if "eval/accuracy" in line)
  end = timeless(tmp_path / "whole")["steps"]
  assert epoch > 2 and end < 8 * epoch and end % epoch == 0

  def stopping(*arguments):
    placed.append(1)
    if len(placed) in (epoch - 1, epoch + 2):
      os.kill(os.getpid(), signal.SIGTERM)
    return place(*arguments)

  monkeypatch.setattr(train, "place_batch", stopping)
  for status in (143, 143, 0):
    assert train.run(config, str(tmp_path / "run")) == status
  assert len(placed) == end
  assert " -> " not in capsys.readouterr().out  # what the data settled is no change
  assert exact(tmp_path / "run") == exact(tmp_path / "whole")
  assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
  for step in saved_steps(tmp_path / "whole"):
    assert_bitwise_equal(arrays(tmp_path / "run", step), arrays(tmp_path / "whole", step))
  assert best_step(tmp_path / "run") == best_step(tmp_path / "whole")
