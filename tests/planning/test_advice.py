"""Settings that fit are found, are the least change, and are true of the estimate."""

import pytest
from ml_collections import ConfigDict

from configs import neo_1p3b, neo_2p7b, tiny
from gptneo_jax.errors import UserError
from gptneo_jax.planning import advice
from gptneo_jax.training import fitting, memory_estimate
from gptneo_jax.training.memory_estimate import GIB

V5E = 15.75 * GIB


def config_of(module, **changes) -> ConfigDict:
  return fitting.apply(module.get_config(), {k.replace("__", "."): v for k, v in changes.items()})


def search(config: ConfigDict, devices: int, available: float, *, recipe: bool):
  fits = advice.fitting(config, devices, available)
  changes = advice.find(config, devices, fits, recipe=recipe)
  if changes is not None:
    assert estimated(config, changes, devices) <= available
  return changes


def estimated(config: ConfigDict, changes: dict, devices: int) -> int:
  return memory_estimate.total(fitting.estimate(fitting.apply(config, changes), devices))


# One part and everything computed again, to change from; the recipes leave both open.
GIVEN = {"grad_accumulation": 1, "model__remat": "full"}


def test_what_fits_needs_no_change():
  assert search(config_of(tiny), 1, V5E, recipe=True) == {}


def test_the_batch_is_taken_in_the_fewest_parts():
  config = config_of(neo_1p3b, **GIVEN)
  changes = search(config, 8, V5E, recipe=True)
  assert changes is not None and set(changes) == {"grad_accumulation"}
  parts = changes["grad_accumulation"]
  assert estimated(config, {"grad_accumulation": parts // 2}, 8) > V5E and 512 // 8 % parts == 0


def test_order_and_least_change():
  """Only what is needed is changed, and what changes the training comes last."""
  given = GIVEN | {"model__remat": "none"}
  config = config_of(neo_1p3b, **given, mesh__data=-1, mesh__fsdp=1)
  roomy = search(config, 8, 60 * GIB, recipe=True)
  assert roomy is not None and set(roomy) == {"grad_accumulation"}
  tight = search(config, 8, 10 * GIB, recipe=True)
  assert tight is not None and {"mesh.data", "mesh.fsdp"} <= set(tight)
  assert "optimizer.name" not in tight
  assert search(config, 8, GIB, recipe=True) is None


def test_what_changes_the_training_is_only_tried_when_asked():
  config = config_of(neo_1p3b, **GIVEN)
  assert search(config, 1, V5E, recipe=True) is None
  changes = search(config, 1, V5E, recipe=False)
  assert changes is not None and changes["optimizer.name"] == "adafactor"


def test_nothing_helps():
  assert search(config_of(neo_2p7b), 1, 2 * GIB, recipe=False) is None


def test_a_smaller_batch_can_still_be_shared_out():
  config = config_of(neo_1p3b, **GIVEN, batch_size=24, data__num_streams=8)
  seen = list(advice._batches(config, 4, smaller=True))
  for changes in seen:
    changed = fitting.apply(config, changes)
    assert changed.batch_size % 8 == 0
    assert changed.batch_size % (4 * changed.grad_accumulation) == 0
  assert {"batch_size": 8, "grad_accumulation": 1} in seen


def test_an_estimate_of_what_cannot_run_says_why():
  with pytest.raises(UserError, match="is of 3 devices, and there are 8"):
    estimated(config_of(neo_1p3b), {"mesh.fsdp": 3}, 8)
  with pytest.raises(UserError, match="not divisible"):
    estimated(config_of(neo_1p3b), {"grad_accumulation": 3}, 8)


def test_settings_are_proved_and_tightened():
  """What a compiler refuses is followed by something smaller, until nothing is left."""
  config, tried = config_of(neo_1p3b, **GIVEN), []

  def fits(changed, target):
    tried.append(changed.grad_accumulation)
    return 5.0 if len(tried) == 2 else None

  class Target:
    size, name = 8, "v5e:2x4"

  found = advice.settings(config, Target, V5E, recipe=True, fits=fits)
  assert found == advice.Advice({"grad_accumulation": tried[1]}, "v5e:2x4", 5.0)
  assert tried[1] > tried[0]
  tried.clear()
  nothing = advice.settings(config, Target, V5E, recipe=True, fits=lambda *_: None)
  assert nothing is None
