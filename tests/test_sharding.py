"""Sharded loss, gradients and memory against one device, in a process with 8 CPU devices."""

import jax.numpy as jnp
import pytest

from gptneo_jax import sharding
from tests.helpers.processes import found_on_eight_devices


@pytest.fixture(scope="module")
def found():
  """What sharding_checks.py printed."""
  return found_on_eight_devices("sharding_checks.py")


def test_loss_and_gradients_equal_one_device(found):
  assert found["devices"] == 8
  assert len(found["cases"]) == 5
  for name, case in found["cases"].items():
    print(f"{name}: loss {case['loss']:.1e}, gradients {case['gradients']:.1e}, relative")
    assert case["loss"] < 1e-6, name
    assert case["gradients"] < 5e-6, name


def test_parameters_are_really_sharded(found):
  """Each device holds its part of everything that is split, and the rest whole."""
  for name, case in found["cases"].items():
    total, held, whole = case["total_bytes"], case["held_bytes"], case["replicated_bytes"]
    print(f"{name}: {held:,} of {total:,} bytes on a device, {whole:,} of them replicated")
    assert case["reported_bytes"] == case["gradient_bytes"] == held
    mesh = case["mesh"]
    assert case["batch_rows"] == 8 // (mesh["data"] * mesh["fsdp"])
    split = mesh["fsdp"] * mesh["tensor"]
    assert held >= total / split
    if split == 1:
      assert held == total
  cases = found["cases"]
  # What fsdp leaves whole: norms, and biases over heads and the MLP.
  fsdp = cases["neo, fsdp=8"]
  assert fsdp["held_bytes"] - fsdp["replicated_bytes"] == (
    (fsdp["total_bytes"] - fsdp["replicated_bytes"]) / 8
  )
  assert fsdp["replicated_bytes"] < 0.05 * fsdp["total_bytes"]
  assert cases["neo, 2 x 2 x 2"]["held_bytes"] < 0.3 * cases["neo, 2 x 2 x 2"]["total_bytes"]
  gpt2 = cases["gpt2, data=-1 tensor=4"]
  assert gpt2["held_bytes"] < 0.3 * gpt2["total_bytes"]


def test_the_table_is_what_is_applied(found):
  specs = found["cases"]["neo, 2 x 2 x 2"]["specs"]
  assert specs["wte"] == ["tensor", "fsdp"]
  assert specs["wpe"] == [None, "fsdp"]
  assert specs["blocks/layer_1/attn/q/kernel"] == [None, "fsdp", "tensor", None]
  assert specs["blocks/layer_1/attn/out/kernel"] == [None, "tensor", None, "fsdp"]
  assert specs["blocks/layer_0/mlp/c_fc/kernel"] == [None, "fsdp", "tensor"]
  assert specs["blocks/layer_0/mlp/c_proj/kernel"] == [None, "tensor", "fsdp"]
  assert all(spec in (None, "layers") for spec in specs["blocks/layer_0/ln_1/scale"])
  assert found["cases"]["gpt2, data=-1 tensor=4"]["mesh"] == {"data": 2, "fsdp": 1, "tensor": 4}
  assert found["cases"]["gpt2, data=-1 tensor=4"]["specs"]["blocks/layer_0/attn/q/bias"] == [
    None, "tensor", None
  ]  # fmt: skip


def test_what_the_mesh_does_not_divide_is_named(found):
  assert found["vocab"] == (
    "mesh.tensor=4 does not divide the vocab dimension (59) of wte; model.vocab_multiple pads it"
  )
  assert found["heads"].startswith(
    "mesh.tensor=8 does not divide the heads dimension (4) of blocks/"
  )
  assert found["heads"].endswith("/kernel")
  assert found["embed"].startswith("mesh.fsdp=8 does not divide the embed dimension (12) of ")
  assert "is of 4 devices, and there are 8" in found["too_small"]


@pytest.mark.parametrize(
  "sizes, expected",
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 8, 1), (1, 8, 1)),
    ((2, 2, -1), (2, 2, 2)),
  ],
)
def test_mesh_sizes(sizes, expected):
  assert sharding.mesh_sizes(*sizes, num_devices=8) == expected


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((-1, -1, 1), "one of them may be -1"),
    ((0, 1, 1), "at least 1"),
    ((-2, 1, 1), "at least 1"),
    ((3, -1, 1), "3 does not divide the 8 devices"),
    ((2, 2, 1), "is of 4 devices, and there are 8; -1 takes all the rest"),
    ((4, 4, 1), "is of 16 devices, and there are 8"),
  ],
)
def test_impossible_meshes(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.mesh_sizes(*sizes, num_devices=8)


def test_nothing_is_asked_without_a_mesh():
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, "batch", "act_embed") is x
