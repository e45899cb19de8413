"""What a config leaves open is chosen by a stated rule; what does not compile is made smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import neo_1p3b, tiny
from gptneo_jax import train
from gptneo_jax.errors import UserError
from gptneo_jax.planning import advice
from gptneo_jax.training import fitting, memory_estimate
from gptneo_jax.training.compiled_step import TooLarge, compile_step, fit
from gptneo_jax.training.memory_estimate import GIB
from gptneo_jax.training.setup import Run, setup_run

V5E = 15.75 * GIB
ORDER = ("none", "dots", "full")


def config_of(module, **changes) -> ConfigDict:
  return fitting.apply(module.get_config(), {k.replace("__", "."): v for k, v in changes.items()})


def needs(config: ConfigDict, choice: dict, devices: int) -> int:
  return memory_estimate.total(fitting.estimate(fitting.apply(config, choice), devices))


@pytest.mark.parametrize(("devices", "memory"), [(8, 15.75), (16, 15.75), (1, 31.25), (4, 95.74)])
def test_the_fastest_that_fits_is_chosen(devices, memory):
  """Nothing with less recomputation in as few parts fits, nor the same in fewer."""
  config = config_of(neo_1p3b)
  chosen = fitting.choose(config, devices, memory * GIB)
  remat, parts = chosen["model.remat"], chosen["grad_accumulation"]
  assert needs(config, chosen, devices) <= memory * GIB
  assert 512 % (devices * parts) == 0
  for better in ORDER[: ORDER.index(remat) + 1]:
    for fewer in range(1, parts + (better != remat)):
      if 512 // devices % fewer == 0:
        other = {"model.remat": better, "grad_accumulation": fewer}
        assert needs(config, other, devices) > memory * GIB, other


def test_what_is_left_open_is_chosen_together():
  """Parts that would leave the devices idle are not worth what is not computed again."""
  config = config_of(neo_1p3b)
  roomy = fitting.choose(config, 8, 1000 * GIB)
  assert roomy == {"model.remat": "none", "grad_accumulation": 1}
  assert fitting.choose(config, 8, V5E)["model.remat"] == "dots"
  given = config_of(neo_1p3b, model__remat="full")
  assert set(fitting.choose(given, 8, V5E)) == {"grad_accumulation"}
  both = config_of(neo_1p3b, model__remat="full", grad_accumulation=4)
  assert fitting.choose(both, 8, V5E) == {}
  # Nothing fits: what needs least.
  assert fitting.choose(config, 8, GIB) == {"model.remat": "full", "grad_accumulation": 64}


def test_what_does_not_compile_is_followed_by_less():
  config, tried = config_of(neo_1p3b), []
  run = setup_run(config, 8, V5E)

  def compile_for(chosen: Run) -> str:
    tried.append(needs(chosen.config, {}, 8))
    if len(tried) < 3:
      raise TooLarge("no", needed=1.05 * V5E)
    return "program"

  chosen, program = fit(run, compile_for)
  assert program == "program" and needs(chosen.config, {}, 8) == tried[-1]
  assert chosen.module.config.remat == chosen.config.model.remat == chosen.model_config.remat
  assert tried[0] > tried[1] > tried[2]
  tried.clear()

  def never(chosen: Run) -> None:
    tried.append(needs(chosen.config, {}, 8))
    raise TooLarge("no")

  with pytest.raises(TooLarge):
    fit(run, never)
  assert tried == sorted(tried, reverse=True) and len(set(tried)) == len(tried)
  assert tried[-1] == needs(config, {}, 8)  # the least that there is


def test_the_step_that_is_chosen_computes_the_same():
  """In one part or several, computed again or kept: one update from one state, to rounding."""
  small = {"model__hidden_size": 16, "model__num_heads": 2, "model__vocab_size": 64, "seq_len": 16}
  config = config_of(tiny, **small, batch_size=4, grad_accumulation=0, model__remat="auto")
  rows = np.random.default_rng(0).integers(0, 64, (4, 17))
  batch = {"inputs": jnp.asarray(rows[:, :-1], jnp.int32), "targets": jnp.asarray(rows[:, 1:], jnp.int32)}  # noqa: E501  # fmt: skip
  losses = []
  for memory, expected in ((GIB, (1, "none")), (1000, (4, "full"))):
    chosen, step = fit(setup_run(config, jax.devices()[:1], memory), compile_step)
    assert chosen.choice == expected
    start = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), chosen.state)
    _, metrics = step(start, batch)
    losses.append(metrics)
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-5)


# --- memory that runs out -------------------------------------------------------------------------


def test_running_out_is_one_line_with_figures_and_advice():
  config = config_of(neo_1p3b, grad_accumulation=1, model__remat="full")
  with pytest.raises(UserError) as caught, advice.when_out_of_memory(config, 8, V5E):
    jax.jit(lambda: jnp.zeros(1 << 45, jnp.float32))()
  line = str(caught.value)
  assert line.startswith("out of memory: Out of memory allocating 140737488355328 bytes")
  assert "GiB on each of 8 device(s) (parameters 0.61 GiB" in line and "there are 15.75 GiB" in line
  assert "By estimate this fits: --config.grad_accumulation=" in line and "\n" not in line

  with pytest.raises(UserError, match=r"the compiler needs at least 16\.50 GiB"):
    with advice.when_out_of_memory(config, 8, V5E):
      raise TooLarge("Ran out of memory", 16.5 * GIB)


def test_other_failures_stay_what_they_are():
  config = config_of(tiny)
  error = jax.errors.JaxRuntimeError("INTERNAL: something else")
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    with advice.when_out_of_memory(config, 1, V5E):
      raise error
  assert caught.value is error


# --- in a run -------------------------------------------------------------------------------------


def test_only_what_cannot_fit_is_refused():
  stdlib = {"data.source": "stdlib", "data.path": "", "data.validation_path": ""}
  config = fitting.apply(tiny.get_config(), stdlib)
  assert train._check_needs(setup_run(config), "") == ""
  batch = fitting.apply(config, {"batch_size": 2**20})
  warning = train._check_needs(setup_run(batch), "")
  assert warning.startswith("this may run out of memory: by estimate a step needs about ")
  assert "By estimate this fits: --config.grad_accumulation=" in warning
  huge = fitting.apply(config, {"model.hidden_size": 30720, "model.num_layers": 64})
  with pytest.raises(UserError, match=r"memory: a step needs about .*, and there are "):
    train._check_needs(setup_run(huge), "")
