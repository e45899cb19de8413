"""Optimisers against independent transcriptions: NumPy float64, and torch.optim.AdamW."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptneo_jax import sharding
from gptneo_jax.checkpoints import manager
from gptneo_jax.config import ModelConfig
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.state import abstract_state
from gptneo_jax.training import optimizer
from tests.helpers.stacked_parameters import SHAPES, by_path, random_tree


def _reference_mesh_adam(params, grads_of_steps, *, peak, b1, b2, eps, decay, clip, warmup, end):
  """The original's update in float64 NumPy, from the reference text; flat dictionaries by path."""
  p = {k: np.asarray(v, np.float64) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in p.items()}
  v = {k: np.zeros_like(x) for k, x in p.items()}
  for step, grads in enumerate(grads_of_steps):
    g = {k: np.asarray(x, np.float64) for k, x in grads.items()}
    norm = math.sqrt(sum((x**2).sum() for x in g.values()))
    g = {k: x * clip / max(norm, clip) for k, x in g.items()}
    rate = peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(step, end) / end)))
    rate *= step / warmup if step < warmup else 1.0
    for k in p:
      # The original's names: ln_1 and ln_2 are norm_1 and norm_2, the final norm is ln_f/{g,b}.
      original = k.replace("ln_1", "norm_1").replace("ln_2", "norm_2")
      original = original.replace("ln_f/scale", "ln_f/g").replace("ln_f/bias", "ln_f/b")
      m[k] = b1 * m[k] + (1 - b1) * g[k]
      v[k] = b2 * v[k] + (1 - b2) * g[k] ** 2
      update = m[k] / (np.sqrt(v[k]) + eps)
      if "norm" not in original and "bias" not in original:
        update = update + decay * p[k]
      p[k] = p[k] - rate * update
  return p


@pytest.mark.parametrize("steps", [3, 20])
def test_mesh_adam_equals_the_float64_transcription(steps):
  config = optimizer.OptimizerConfig("mesh_adam", learning_rate=0.01, weight_decay=0.1)
  schedule = optimizer.ScheduleConfig(warmup_steps=2, decay_steps=15)
  tx, _ = optimizer.make_optimizer(config, schedule)
  params = random_tree(SHAPES, 0)
  # Norms of about 40 and 0.4 in turn: both sides of the clip at 1.
  grads = [random_tree(SHAPES, 1 + i, size=1.0 if i % 2 else 0.01) for i in range(steps)]
  norms = [float(optax.tree.norm(g)) for g in grads]
  assert min(norms) < 1 < max(norms)

  expected = _reference_mesh_adam(
    by_path(params),
    [by_path(g) for g in grads],
    peak=0.01,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    decay=0.1,
    clip=1.0,
    warmup=2,
    end=15,
  )

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for g in grads:
    params, state = step(params, state, g)
  for path, actual in by_path(params).items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(actual, expected[path], rtol=0, atol=1e-6 * scale, err_msg=path)


def test_decay_mask_of_every_leaf():
  mesh = by_path(optimizer.decay_mask(random_tree(SHAPES, 0), "mesh_adam"))
  adamw = by_path(optimizer.decay_mask(random_tree(SHAPES, 0), "adamw"))
  block = {
    "ln_1/scale": False,
    "ln_1/bias": False,
    "ln_2/scale": False,
    "ln_2/bias": False,
    "attn/q/kernel": True,
    "attn/k/kernel": True,
    "attn/v/kernel": True,
    "attn/out/kernel": True,
    "attn/out/bias": False,
    "mlp/c_fc/kernel": True,
    "mlp/c_fc/bias": False,
    "mlp/c_proj/kernel": True,
    "mlp/c_proj/bias": False,
  }
  shared = {f"blocks/layer_0/{name}": value for name, value in block.items()}
  shared |= {"wte": True, "wpe": True}
  assert mesh == shared | {"ln_f/scale": True, "ln_f/bias": True}
  assert adamw == shared | {"ln_f/scale": False, "ln_f/bias": False}


def test_moments_are_float32_trees_like_the_parameters():
  dtype = lambda x: x.dtype
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_tree(SHAPES, 0))
  for name in ("mesh_adam", "adamw"):
    tx, _ = optimizer.make_optimizer(
      optimizer.OptimizerConfig(name, weight_decay=0.1), optimizer.ScheduleConfig(decay_steps=10)
    )
    state = tx.init(params)
    states = jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu"))
    (adam,) = [s for s in states if hasattr(s, "mu")]
    for tree in (adam.mu, adam.nu):
      assert jax.tree.structure(tree) == jax.tree.structure(params)
      assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    updates, after = jax.jit(tx.update)(params, state, params)
    assert jax.tree.map(dtype, after) == jax.tree.map(dtype, state)
    assert jax.tree.leaves(optax.apply_updates(params, updates))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("name", "values"),
  [
    # Peak 2, warm-up 10, decay to 100: at step 50 a cosine from 0 is half-way, 0.55.
    ("mesh_cosine", {0: 0.0, 50: 1.1, 100: 0.2, 101: 0.2, 1000: 0.2}),
    ("mesh_linear", {0: 0.0, 1: 0.1982, 10: 1.82, 50: 1.1, 100: 0.2, 1000: 0.2}),
    ("cosine", {0: 0.0, 1: 0.2, 10: 2.0, 55: 1.1, 100: 0.2, 1000: 0.2}),
    ("linear", {0: 0.0, 1: 0.2, 10: 2.0, 55: 1.1, 100: 0.2, 1000: 0.2}),
    ("wsd", {0: 0.0, 1: 0.2, 10: 2.0, 80: 2.0, 90: 1.1, 100: 0.2, 1000: 0.2}),
    ("constant", {0: 0.0, 1: 0.2, 10: 2.0, 100: 2.0, 1000: 2.0}),
  ],
)
def test_schedule_values(name, values):
  config = optimizer.ScheduleConfig(name=name, warmup_steps=10, decay_steps=100)
  schedule = optimizer.make_schedule(config, peak=2.0)
  for step, expected in values.items():
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-6), step
  np.testing.assert_allclose(
    schedule(np.array(list(values))), np.array(list(values.values())), rtol=1e-6
  )


@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "theirs", "floor", "options"),
  [
    ("linear", "linear", 0.0, {}),
    ("cosine", "cosine", 0.0, {}),
    ("cosine", "cosine_with_min_lr", 0.1, {"min_lr_rate": 0.1}),
    ("constant", "constant_with_warmup", 0.0, {}),
    ("wsd", "warmup_stable_decay", 0.0, {"num_decay_steps": 25, "decay_type": "linear"}),
  ],
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_those_of_transformers(name, theirs, floor, options, warmup):
  torch = pytest.importorskip("torch")
  from transformers import get_scheduler

  steps, peak = 100, 1.0
  config = optimizer.ScheduleConfig(
    name=name, warmup_steps=warmup, decay_steps=steps, cooldown=0.25, floor=floor
  )
  reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
  rule = get_scheduler(theirs, reference, warmup, steps, scheduler_specific_kwargs=options)
  expected = []
  for _ in range(steps + 10):
    expected.append(rule.get_last_lr()[0])
    reference.step()
    rule.step()
  if name == "cosine":  # theirs rises again after its end
    expected[steps + 1 :] = [floor] * 9
  actual = optimizer.make_schedule(config, peak)(np.arange(steps + 10))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


def test_mesh_cosine_multiplies_the_decayed_rate_during_warm_up():
  schedule = optimizer.make_schedule(
    optimizer.ScheduleConfig(warmup_steps=10, decay_steps=100), 2.0
  )
  for step, factor in ((1, 0.1), (9, 0.9), (10, 1.0), (11, 1.0)):
    cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100))
    assert float(schedule(step)) == pytest.approx(2.0 * factor * cosine, rel=1e-6)
  no_warmup = optimizer.make_schedule(
    optimizer.ScheduleConfig(warmup_steps=0, decay_steps=100), 2.0
  )
  assert float(no_warmup(0)) == 2.0


def test_the_first_update_of_a_warm_up_changes_nothing():
  tx, schedule_fn = optimizer.make_optimizer(
    optimizer.OptimizerConfig(weight_decay=0.1), optimizer.ScheduleConfig(decay_steps=100)
  )
  params = random_tree(SHAPES, 0)
  update = jax.jit(tx.update)
  updates, state = update(random_tree(SHAPES, 1), tx.init(params), params)
  assert all(not np.any(u) for u in jax.tree.leaves(updates))
  updates, _ = update(random_tree(SHAPES, 2), state, params)
  assert all(np.all(u != 0) for u in jax.tree.leaves(updates))
  assert float(schedule_fn(1)) > 0


@pytest.mark.parity
def test_adamw_equals_torch():
  torch = pytest.importorskip("torch")
  params = random_tree(SHAPES, 0)
  grads = [random_tree(SHAPES, 1 + i, size=1.0 if i % 2 else 0.01) for i in range(10)]
  config = optimizer.OptimizerConfig("adamw", learning_rate=0.01, weight_decay=0.1)
  schedule = optimizer.ScheduleConfig(name="cosine", warmup_steps=2, decay_steps=8)
  tx, schedule_fn = optimizer.make_optimizer(config, schedule)

  theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in by_path(params).items()}
  decays = by_path(optimizer.decay_mask(params, "adamw"))
  groups = [
    {"params": [theirs[k] for k in theirs if decays[k] == flag], "weight_decay": 0.1 * flag}
    for flag in (True, False)
  ]
  reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)

  state = tx.init(params)
  update = jax.jit(tx.update)
  for step, g in enumerate(grads):
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    for k, x in by_path(g).items():
      theirs[k].grad = torch.tensor(x)
    torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
    for group in reference.param_groups:
      group["lr"] = float(schedule_fn(step))
    reference.step()
  for path, actual in by_path(params).items():
    np.testing.assert_allclose(
      actual, theirs[path].detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=path
    )


@pytest.mark.parametrize("name", ["mesh_adam", "adamw", "muon"])
def test_moments_are_sharded_as_their_parameters(name):
  config = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, vocab_size=64)
  mesh = sharding.abstract_mesh(1, 4, 2, num_devices=8)
  state = abstract_state(Decoder(config), _made(name), mesh)
  params, moments = _by_name(state.params), _by_name(state.opt_state)
  found = set()
  for path, leaf in moments.items():
    if parameter := next((p for p in params if path.endswith("/" + p)), None):
      assert leaf.sharding == params[parameter].sharding, path
      found.add(parameter)
  assert found == set(params)
  assert any(leaf.sharding.spec for leaf in params.values())


def _by_name(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


ADAFACTOR_SHAPES = {
  "wte": (96, 64),
  "blocks": {
    "layer_0": {
      "attn": {"q": {"kernel": (2, 64, 2, 64)}},
      "mlp": {"c_fc": {"kernel": (2, 64, 128), "bias": (2, 128)}},
    }
  },
}


def test_adafactor_on_stacked_layers_equals_adafactor_on_each():
  tx, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig("adafactor", learning_rate=0.1, clip_norm=0, weight_decay=0.1),
    optimizer.ScheduleConfig(name="constant", warmup_steps=0, decay_steps=10),
  )
  params = random_tree(ADAFACTOR_SHAPES, 0)
  # The second layer is 100 times larger: one RMS for both would show.
  params["blocks"] = jax.tree.map(
    lambda x: x * np.array([1, 100], np.float32).reshape(2, *[1] * (x.ndim - 1)), params["blocks"]
  )
  grads = random_tree(ADAFACTOR_SHAPES, 1)
  update = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])
  stacked = update(grads, params)
  for layer in range(2):
    one = {"layers": jax.tree.map(lambda x: x[layer], params["blocks"])}  # noqa: B023
    g = {"layers": jax.tree.map(lambda x: x[layer], grads["blocks"])}  # noqa: B023
    alone = update(g, one)
    for (path, expected), actual in zip(
      by_path(alone["layers"]).items(), jax.tree.leaves(stacked["blocks"])
    ):
      np.testing.assert_allclose(actual[layer], expected, rtol=1e-5, err_msg=path)


def test_adafactor_keeps_a_small_state():
  tx, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig("adafactor"), optimizer.ScheduleConfig(decay_steps=10)
  )
  params = random_tree(ADAFACTOR_SHAPES, 0)
  count = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))
  assert count(tx.init(params)) < 0.1 * count(params)


def _made(name, **settings):
  config = optimizer.OptimizerConfig(name, **settings)
  return optimizer.make_optimizer(config, optimizer.ScheduleConfig(decay_steps=10))[0]


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_the_state_has_the_same_names_with_clipping_or_decay_on_or_off(name):
  settings = (
    {},
    {"weight_decay": 0.1},
    {"clip_norm": 0.0},
    {"weight_decay": 0.1, "clip_norm": 0.0},
  )
  states = [jax.eval_shape(_made(name, **each).init, random_tree(SHAPES, 0)) for each in settings]
  assert set(states[0]) == {"clip", name, "decay", "learning_rate"}
  assert all(jax.tree.structure(state) == jax.tree.structure(states[0]) for state in states)


def test_a_checkpoint_goes_on_with_clipping_or_decay_switched(tmp_path):
  params, grads = ({"w": jnp.asarray(random_tree((4, 3), seed))} for seed in (0, 1))
  before, after = _made("adamw", weight_decay=0.1), _made("adamw", clip_norm=0.0)
  _, state = before.update(grads, before.init(params), params)
  checkpointer = manager.Checkpointer(tmp_path)
  checkpointer.save(1, params=params, optimizer=state, data_state={})
  restored = checkpointer.restore(*(jax.eval_shape(f, params) for f in (lambda x: x, after.init)))
  assert restored is not None
  checkpointer.close()
  jax.tree.map(np.testing.assert_array_equal, restored.optimizer, state)
  after.update(grads, restored.optimizer, params)


@pytest.mark.parametrize(
  ("arguments", "field"),
  [
    ({"name": "sgd"}, "optimizer.name"),
    ({"learning_rate": 0.0}, "optimizer.learning_rate"),
    ({"b1": 1.0}, "optimizer.b1"),
    ({"b2": -0.1}, "optimizer.b2"),
    ({"eps": 0.0}, "optimizer.eps"),
    ({"weight_decay": -1.0}, "optimizer.weight_decay"),
    ({"clip_norm": float("nan")}, "optimizer.clip_norm"),
  ],
)
def test_optimizer_config_names_the_bad_field(arguments, field):
  with pytest.raises(ValueError, match=field):
    optimizer.OptimizerConfig(**arguments)


@pytest.mark.parametrize(
  ("arguments", "field"),
  [
    ({"name": "step"}, "schedule.name"),
    ({"warmup_steps": -1}, "schedule.warmup_steps"),
    ({"decay_steps": 0}, "schedule.decay_steps"),
    ({"floor": 1.5}, "schedule.floor"),
    ({"name": "cosine", "warmup_steps": 10, "decay_steps": 10}, "above schedule.warmup_steps"),
    ({"name": "linear", "warmup_steps": 10, "decay_steps": 10}, "above schedule.warmup_steps"),
    ({"name": "wsd", "warmup_steps": 60, "cooldown": 0.5}, "after schedule.warmup_steps"),
    ({"warmup_ratio": 1.0}, "schedule.warmup_ratio"),
    ({"cooldown": 0.0}, "schedule.cooldown"),
  ],
)
def test_schedule_config_names_the_bad_field(arguments, field):
  with pytest.raises(ValueError, match=field):
    optimizer.ScheduleConfig(**({"decay_steps": 100} | arguments))
