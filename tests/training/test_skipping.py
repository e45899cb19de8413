"""Steps that are skipped: which ones, what they leave alone, what a resumed run knows of them."""

import collections
import functools
import json
import math
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax import steps
from gptneo_jax.checkpoints.manager import latest_step
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import FULL, Method
from gptneo_jax.state import abstract_state, init_state
from gptneo_jax.train import run
from gptneo_jax.training import optimizer, parse_config, run_config, setup, skipping, tasks
from gptneo_jax.training.skipping import SkipConfig
from tests.helpers import last_token_task, train_runs
from tests.helpers.compiling import AS_IN_USE
from tests.helpers.processes import found_on_eight_devices
from tests.helpers.small_runs import exact, lines, texts, write_jsonl


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, f"{tasks.__name__}.last_token", last_token_task)
  config = run_config.base(
    ModelConfig(
      hidden_size=16, num_layers=1, num_heads=2, vocab_size=300, max_position_embeddings=16,
      attention_pattern=("global",), head="sequence_classification", pad_token_id=0,
    )
  )  # fmt: skip
  config.update(task="last_token", steps=8, batch_size=8, eval_every=0, checkpoint_every=2)
  config.update(log_every=1)
  config.optimizer.learning_rate = 1e-2
  config.schedule.update(name="linear", warmup_steps=2, decay_steps=8)
  config.data.update(path=write_jsonl(tmp_path / "text.jsonl", texts(20)), tokenizer="train")
  return config


@pytest.fixture
def bad_steps(monkeypatch):
  """Steps whose batch has a weight that is not a number in one of its rows."""
  bad, draw = set(), last_token_task.draw

  def drawn(config, step):
    rows = draw(config, step)
    if step in bad:
      rows["weights"][3] = np.nan
    return rows

  monkeypatch.setattr(last_token_task, "draw", drawn)
  return bad


# --- the rule -------------------------------------------------------------------------------------


def by_hand(config: SkipConfig, seen: list[tuple[float, float]]) -> list[bool]:
  """Which of the steps are skipped, from the definition, in float64."""
  before, found = collections.deque(maxlen=config.window), []
  for pair in seen:
    skipped = False
    if not all(map(math.isfinite, pair)):
      skipped = config.nonfinite
    elif config.spike_sigmas and len(before) >= config.window // 2:
      skipped = any(
        x > statistics.mean(column) + config.spike_sigmas * statistics.stdev(column)
        for x, column in zip(pair, zip(*before))
      )
    if not skipped:
      before.append(pair)
    found.append(skipped)
  return found


@pytest.mark.parametrize("window", [4, 9, 32])
def test_which_steps_are_skipped(window):
  """Losses that fall, with spikes of either number, falls as steep, and numbers that are none."""
  chance, seen = np.random.default_rng(window), []
  for step in range(150):
    loss, norm = 5 / (1 + 0.02 * step) + chance.normal(0, 0.05), 1 + abs(chance.normal(0, 0.1))
    kind = chance.integers(12)
    loss += {0: 3.0, 1: -3.0}.get(kind, 0.0)
    norm *= {2: 9.0, 3: 0.01}.get(kind, 1.0)
    seen.append((math.nan if kind == 4 else loss, math.inf if kind == 5 else norm))
  config = SkipConfig(nonfinite=True, spike_sigmas=4.0, window=window)
  guard = skipping.guard(config)
  check, history, found = jax.jit(guard.check), guard.init(), []
  for loss, norm in seen:
    skipped, history = check(history, jnp.float32(loss), jnp.float32(norm))
    found.append(bool(skipped))
  assert found == by_hand(config, [tuple(np.float32(pair).tolist()) for pair in seen])
  assert 10 < sum(found) < 100


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    (dict(nonfinite=True), [False, True, True, False]),
    (dict(spike_sigmas=2.0, window=4), [False, False, False, True]),
  ],
)
def test_each_kind_alone(settings, expected):
  guard = skipping.guard(SkipConfig(**settings))
  history, found = guard.init(), []
  for loss in (1.0, 1.1, 0.9):
    _, history = guard.check(history, jnp.float32(loss), jnp.float32(1.0))
  for pair in ((1.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (50.0, 1.0)):
    skipped, _ = guard.check(history, *map(jnp.float32, pair))
    found.append(bool(skipped))
  assert found == expected
  assert skipping.guard(SkipConfig()) is None


@pytest.mark.parametrize("window", [4, 8, 16])
def test_a_history_goes_through_json(window):
  """Bit for bit with the same window; with another, what fits of it."""
  guard = skipping.guard(SkipConfig(spike_sigmas=6.0, window=8))
  history, seen = guard.init(), np.random.default_rng(0).normal(3, 0.1, (11, 2)).astype(np.float32)
  for loss, norm in seen:
    _, history = guard.check(history, jnp.asarray(loss), jnp.asarray(norm))
  stored = json.loads(json.dumps(skipping.history_as_json(history)))
  shapes = jax.eval_shape(skipping.guard(SkipConfig(spike_sigmas=6.0, window=window)).init)
  back = skipping.history_from_json(shapes, stored)
  kept = min(window, 8)
  assert back["count"] == kept and back["count"].dtype == np.int32
  for name, column in (("losses", 0), ("grad_norms", 1)):
    assert back[name].shape == (window,)
    assert back[name][window - kept :].tobytes() == seen[-kept:, column].tobytes()
  assert skipping.history_as_json({}) == {}
  assert skipping.history_from_json(shapes, {})["count"] == 0


@pytest.mark.parametrize(
  ("setting", "value"),
  [("spike_sigmas", -1.0), ("spike_sigmas", float("nan")), ("window", 3), ("most", 0)],
)
def test_ranges(setting, value, config):
  config.skip.update({setting: value})
  with pytest.raises(UserError, match=f"skip.{setting} is {value}; it must be"):
    parse_config.read(config)


# --- the step -------------------------------------------------------------------------------------


def bits(tree) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
  ("name", "parts", "method"),
  [
    ("adamw", 1, FULL),
    ("mesh_adam", 4, FULL),
    ("adafactor", 2, FULL),
    ("adamw", 2, Method(LoraConfig(rank=2, alpha=4.0))),
  ],
)
def test_a_skipped_step_changes_nothing(name, parts, method, config, bad_steps):
  """And the others are, bit for bit, those of a step that skips none, both compiled as in use."""
  ours = setup.setup_run(config)
  rule, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig(name, learning_rate=0.01),
    optimizer.ScheduleConfig(warmup_steps=3, decay_steps=20),
  )
  task_loss = ours.task.make_loss(ours.config, ours.module)

  def share(params, part, *rest):
    loss, metrics = task_loss.share(params, part, *rest)
    scale = part["scale"].mean()
    return scale * loss, {**metrics, "loss": scale * metrics["loss"]}

  def run_of(guard, wanted: list[tuple[int, float]]):
    shapes = abstract_state(ours.module, rule, ours.mesh, method)
    history = guard.init() if guard else {}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    shardings = shardings.replace(history=jax.tree.map(lambda _: shardings.step, history))
    step = steps.make_train_step(
      steps.Loss(task_loss.weight_sums, share), rule, shardings, ours.mesh,
      accumulation=parts, guard=guard,
    )  # fmt: skip
    state = init_state(ours.module, rule, ours.mesh, 0, method).replace(history=history)
    found, compiled = [], None
    for number, scale in wanted:
      rows = last_token_task.draw(config, number) | {"scale": np.full(8, scale, np.float32)}
      batch = steps.place_batch(rows, ours.mesh, 8)
      compiled = compiled or step.lower(state, batch).compile(compiler_options=AS_IN_USE)
      state, metrics = compiled(state, batch)
      found.append((int(state.step), bits((state.params, state.opt_state)), metrics))
    return found

  bad_steps.add(3)
  guard = skipping.guard(SkipConfig(nonfinite=True, spike_sigmas=6.0, window=4))
  taken = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1e3), (6, 1.0)]
  guarded = run_of(guard, taken)
  plain = run_of(None, [taken[at] for at in (0, 1, 3, 5)])
  assert [int(metrics["skipped"]) for _, _, metrics in guarded] == [0, 0, 1, 0, 1, 0]
  assert np.isnan(guarded[2][2]["loss"]) and guarded[4][2]["loss"] > 100
  assert [number for number, _, _ in guarded] == [1, 2, 3, 4, 5, 6]
  assert guarded[2][1] == guarded[1][1] and guarded[4][1] == guarded[3][1]
  assert [guarded[at][1] for at in (0, 1, 3, 5)] == [state for _, state, _ in plain]
  assert plain[0][1] != plain[1][1]


@pytest.mark.processes
def test_eight_devices_skip_together():
  """What is not a number is in the rows of one of them."""
  found = found_on_eight_devices("skipping_devices.py")
  assert found == {"skipped": [0, 1, 0], "as_before": True, "moved": True, "history": 2}


# --- the run --------------------------------------------------------------------------------------


def held(workdir, step: int) -> dict:
  """What the data's state of a checkpoint holds of skipped steps."""
  stored = json.loads((workdir / str(step) / "data" / "metadata").read_text())
  return {"history": stored["history"], "skipped": stored["summary"]["skipped"]}


def test_a_run_goes_on_past_bad_batches_and_resumes(config, bad_steps, tmp_path, capsys):
  bad_steps.update({3, 6})
  config.skip.update(nonfinite=True, spike_sigmas=6.0, window=4)
  assert run(config, str(tmp_path / "run")) == 0
  said = capsys.readouterr().out
  assert "step 3 skipped, not finite: loss nan, gradient norm nan (1 skipped so far)" in said
  assert "step 6 skipped, not finite" in said and "(2 skipped so far)" in said
  written = exact(tmp_path / "run")
  assert [line["train/skipped"] for line in written] == [0, 0, 1, 1, 1, 2, 2, 2]
  assert [line["step"] for line in written if line["train/loss"] is None] == [3, 6]
  # The schedule counts updates: step 4 is the third.
  rates = [line["train/learning_rate"] for line in written]
  assert rates[3] == rates[2] != rates[4] and rates[6] == rates[5]
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  finite = [line["train/loss"] for line in written if line["train/loss"] is not None]
  assert summary["skipped_steps"] == 2 and summary["steps"] == 8
  assert summary["train_loss"] == pytest.approx(np.mean(finite))
  assert "mean of all steps but 2 that were skipped" in said

  for until in (3, 5, 8):  # once just after a step that was skipped
    config.steps = until
    assert run(config, str(tmp_path / "parts")) == 0
  parts, whole = (train_runs.arrays(tmp_path / name, 8) for name in ("parts", "run"))
  train_runs.assert_bitwise_equal(parts, whole)
  once = lambda line: {k: v for k, v in line.items() if k[:5] != "eval/"}
  assert [*map(once, exact(tmp_path / "parts"))] == [*map(once, written)]
  assert held(tmp_path / "parts", 8) == held(tmp_path / "run", 8)
  assert len(held(tmp_path / "run", 8)["history"]["losses"]) == 4


def test_too_many_in_a_row_end_the_run(config, bad_steps, tmp_path):
  bad_steps.update({2, 5, 6, 7})
  config.skip.update(nonfinite=True, most=3)
  for _ in range(2):  # started again it ends at the same step
    with pytest.raises(UserError) as stopped:
      run(config, str(tmp_path / "run"))
    line = str(stopped.value)
    assert line.startswith("step 7: skip.most steps in a row (3) were skipped")
    assert "a lower optimizer.learning_rate" in line and "\n" not in line
    assert line.endswith(". The last good checkpoint is step 6")
  config.skip.most = 4
  assert run(config, str(tmp_path / "run")) == 0
  assert latest_step(tmp_path / "run") == 8


def test_it_is_switched_on_and_off_where_a_run_resumes(config, bad_steps, tmp_path, monkeypatch):
  """Nothing of it is in the optimizer's state, and a run without bad batches is the same run."""
  compiled = functools.partialmethod(jax.stages.Lowered.compile, compiler_options=AS_IN_USE)
  monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
  for until, on in ((2, False), (5, True), (8, False)):
    config.steps = until
    config.skip.update(nonfinite=on, spike_sigmas=6.0 * on)
    assert run(config, str(tmp_path / "run")) == 0
  config.skip.update(nonfinite=False, spike_sigmas=0.0)
  assert run(config, str(tmp_path / "plain")) == 0
  train_runs.assert_bitwise_equal(
    *(train_runs.arrays(tmp_path / name, 8) for name in ("run", "plain"))
  )
  assert "train/skipped" not in lines(tmp_path / "plain")[-1]
  bad_steps.add(9)
  config.steps = 10
  with pytest.raises(UserError, match=r"step 9: loss nan.*skipped with --config\.skip\.nonfinite"):
    run(config, str(tmp_path / "plain"))
  config.skip.nonfinite = True
  assert run(config, str(tmp_path / "plain")) == 0
