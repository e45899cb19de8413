"""Learning rates by pattern and by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.model import methods
from gptneo_jax.training import rate_factors
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from tests.helpers.small_models import NEO, random_params


def factors(config=NEO, **settings):
  """Of each parameter, by path, from one step of the optimizer with and without them."""
  params = random_params(config)
  grads = jax.tree.map(jnp.ones_like, params)
  schedule = ScheduleConfig(name="constant", warmup_steps=0, decay_steps=1)
  found = []
  for one in ({}, settings):
    rule, _ = make_optimizer(
      OptimizerConfig("adamw", weight_decay=0.1, **one), schedule, config.num_layers
    )
    updates, state = rule.update(grads, rule.init(params), params)
    found.append((methods.paths(updates), state))
  (plain, state), (scaled, other) = found
  assert jax.tree.structure(state) == jax.tree.structure(other)  # a run resumes with other rates
  return {path: np.asarray(scaled[path] / plain[path]) for path in plain}


def test_layer_decay():
  found = factors(layer_decay=0.5)
  for path in ("wte", "wpe"):
    np.testing.assert_allclose(found[path], 0.5**5, rtol=1e-5)
  for layer in range(4):
    stacked = found[f"blocks/layer_{layer % 2}/mlp/c_fc/kernel"]
    np.testing.assert_allclose(stacked[layer // 2], 0.5 ** (4 - layer), rtol=1e-5)
  np.testing.assert_allclose(found["ln_f/scale"], 1.0)


def test_rates_by_pattern():
  """The first that matches counts; both kinds of factor are multiplied."""
  found = factors(layer_decay=0.5, rates="attn/q=0, attn=2,wte=0.1")
  assert not found["blocks/layer_1/attn/q/kernel"].any()
  np.testing.assert_allclose(found["blocks/layer_1/attn/v/kernel"][1], 2 * 0.5, rtol=1e-5)
  np.testing.assert_allclose(found["wte"], 0.1 * 0.5**5, rtol=1e-5)
  np.testing.assert_allclose(found["blocks/layer_1/mlp/c_fc/bias"][1], 0.5, rtol=1e-5)


@pytest.mark.parametrize("rates", ["head", "head=x", "=2", "(=2", "head=-1", "wte=inf"])
def test_what_is_no_rate_is_named(rates):
  with pytest.raises(ValueError, match=r"optimizer\.rates has .*PATTERN=FACTOR"):
    OptimizerConfig(rates=rates)


def test_a_pattern_that_matches_nothing():
  rate_factors.check("wte=2", random_params(NEO))
  with pytest.raises(ValueError, match=r"'lora' matches nothing that learns; what learns is .*wte"):
    rate_factors.check("lora=2", random_params(NEO))
  with pytest.raises(ValueError, match=r"layer_decay is 1\.5"):
    OptimizerConfig(layer_decay=1.5)
