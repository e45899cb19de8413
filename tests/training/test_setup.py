"""From a config to a run in one visit: on the devices that are here, and on others."""

import jax
import pytest

from configs import neo_1p3b, tiny
from gptneo_jax.errors import UserError
from gptneo_jax.planning import topology
from gptneo_jax.training import fitting, multihost
from gptneo_jax.training.memory_estimate import GIB
from gptneo_jax.training.setup import setup_run
from tests.helpers.topologies import needs_libtpu


def config_of(module, **changes):
  return fitting.apply(module.get_config(), {k.replace("__", "."): v for k, v in changes.items()})


def test_what_is_here():
  config = config_of(tiny)
  run = setup_run(config)
  assert run.mesh.size == jax.device_count() and run.mesh.devices.flat[0] == jax.devices()[0]
  assert run.asked == run.config == config and run.choice == (1, "none")
  assert run.own_streams == range(8) == run.streams[jax.process_index()]  # batch_size 8
  assert run.attention == {"global": "blocked", "local": "blocked"}
  assert run.module.config == run.model_config
  described = run.describe()
  assert "1,331,328 parameters on" in described and "local blocked" in described
  assert "a batch in 1 part(s) of " in described and "(chosen)" not in described


def test_what_is_left_open_is_chosen_once_for_all():
  """In config, model and module alike, and by the number of devices and their memory alone."""
  config = config_of(neo_1p3b)
  run = setup_run(config, 8, 15.75 * GIB)
  assert run.asked is config and run.asked.model.remat == "auto"
  assert run.choice == (run.config.grad_accumulation, run.config.model.remat)
  assert fitting.apply(config, fitting.choose(config, 8, 15.75 * GIB)) == run.config
  assert run.module.config.remat == run.model_config.remat == run.choice[1] != "auto"
  assert "(chosen)" in run.describe_choice()
  other = run.with_choice({"grad_accumulation": 64, "model.remat": "full"})
  assert other.choice == (64, "full") and other.module.config.remat == "full"
  assert other.state is run.state and run.choice != other.choice
  # Only the number of devices is known: shapes and shardings, and nothing of hosts or kernels.
  assert run.streams == {} and run.attention == {}
  wte = run.state.params["wte"]
  assert wte.sharding.shard_shape(wte.shape)[1] == wte.shape[1] // 8  # fsdp


@needs_libtpu
def test_devices_of_a_topology():
  """The same visit that `train` makes there: hosts, streams, kernels, choices."""
  devices = topology.find("v5e:4x4").devices
  config = config_of(neo_1p3b)
  run = setup_run(config, devices, 15.75 * GIB)
  assert run.attention == {"global": "splash", "local": "splash"}
  assert run.streams == multihost.streams_by_host(run.mesh, 512, 64) and len(run.streams) == 4
  assert run.choice == setup_run(config, 16, 15.75 * GIB).choice
  with pytest.raises(UserError, match="'cudnn' cannot serve here: it runs on NVIDIA GPUs"):
    setup_run(config_of(neo_1p3b, model__attention_impl="cudnn"), devices, 15.75 * GIB)
  with pytest.raises(UserError, match="num_streams 2 cannot be shared out among 4 hosts"):
    setup_run(config_of(neo_1p3b, data__num_streams=2), devices, 15.75 * GIB)


@pytest.mark.parametrize(
  ("changes", "devices", "said"),
  [
    ({"steps": 0}, None, "steps is 0; it must be at least 1"),
    ({"mesh__fsdp": 3}, 8, "3 does not divide the 8 devices"),
    ({"grad_accumulation": 3}, 1, "batch_size 8 is not divisible by mesh.data 1"),
    ({"mesh__tensor": 8}, 8, "does not divide the"),
    ({"seq_len": 512}, None, "seq_len 512 is more than model.max_position_embeddings 256"),
  ],
)
def test_mistakes(changes, devices, said):
  with pytest.raises(UserError, match=said):
    setup_run(config_of(tiny, **changes), devices, GIB)
