"""Topologies by name; those of TPUs where TPU's compiler is installed."""

import importlib.util

import jax
import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.planning import topology
from tests.helpers.topologies import needs_libtpu


def test_what_is_here():
  found = topology.find("here")
  assert found.devices == tuple(jax.devices()) and found.size == jax.device_count()
  assert topology.larger(found) == []


@pytest.mark.parametrize(("name", "size"), [("t4", 1), ("T4:2", 2), ("a100-80gb:8", 8)])
def test_gpus_are_named_and_not_compiled_for(name, size):
  found = topology.find(name)
  assert found.size == size and found.devices == ()
  assert found.chip is not None and found.chip.name == name.lower().partition(":")[0]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("v5:2x4", "near it: v5e:2x4"),
    ("v5e:2x3", "there are v5e:1x1, v5e:2x2, v5e:2x4"),
    ("v5e", "there are v5e:1x1"),
    ("v5p:2x2", "v5p:2x2x1"),
    ("t4:0", "t4:8 for example"),
    ("t4:many", "t4:8 for example"),
    ("laptop", "the chips are v4, v5e"),
  ],
)
def test_unknown_names_get_the_nearest(name, expected):
  with pytest.raises(UserError, match="unknown topology") as error:
    topology.find(name)
  assert expected in str(error.value) and "\n" not in str(error.value)


def test_without_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'gptneo_jax\[tpu\]'"):
    topology.find("v5e:2x4")


def test_larger_ones():
  v5e = topology.Topology("v5e:4x4", topology.CHIPS["v5e"], "4x4", ())
  assert topology.larger(v5e)[:2] == ["v5e:4x8", "v5e:8x8"]
  assert topology.larger(topology.find("t4:2"))[:2] == ["t4:4", "t4:8"]


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "size", "hosts"),
  [("v5e:1x1", 1, 1), ("v6e:2x4", 8, 2), ("v5p:2x2x2", 8, 2), ("v4:2x2x1", 4, 1)],
)
def test_devices_of_a_tpu(name, size, hosts):
  found = topology.find(name)
  assert len(found.devices) == size == found.size
  assert len({device.process_index for device in found.devices}) == hosts
  assert found.chip is not None
  assert {device.device_kind for device in found.devices} == {found.chip.kind}
