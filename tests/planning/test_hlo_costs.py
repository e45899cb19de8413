"""Costs of compiled programs: against sums by hand, and against the compiler's own."""

import jax
import jax.numpy as jnp
import pytest

from gptneo_jax.planning import hlo, hlo_costs
from tests.helpers.processes import found_on_eight_devices


def compiled(function, *shapes, dtype=jnp.float32):
  return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).compile()


def program(*lines: str, fused: str = "") -> hlo.Module:
  """A module of these instructions; the last is the root."""
  body = [f"  {line}" for line in lines[:-1]] + [f"  ROOT {lines[-1]}"]
  return hlo.parse("\n".join(["HloModule m", "", fused, "ENTRY %main () -> f32[] {", *body, "}"]))


# --- products -------------------------------------------------------------------------------------


def test_products_in_loops_count_as_often_as_they_run():
  """The compiler's own analysis takes the body of a loop once: the reason for this module."""
  M, D, L = 32, 64, 6

  def loss(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

  step = compiled(jax.grad(loss), (L, D, D), (M, D))
  product = 2 * M * D * D
  # Forward, the gradient of w, and that of x but for the first layer, which the loop computes too.
  assert hlo_costs.flops(hlo.parse(step.as_text())) == 3 * L * product
  assert step.cost_analysis()["flops"] < 4 * product


def test_batched_products():
  module = hlo.parse(compiled(lambda a, b: a @ b, (5, 8, 16), (5, 16, 4)).as_text())
  assert hlo_costs.flops(module) == 2 * 5 * 8 * 16 * 4


def test_convolutions_as_tpus_use_them():
  """Heads as a dilated window, as TPU's compiler writes q·k of 8 x 12 heads: the dense window
  would count 96 times too much."""
  module = program(
    "%q = bf16[8,2048,12,64]{1,3,2,0} parameter(0)",
    "%k = bf16[8,2048,12,64]{1,3,2,0} parameter(1)",
    "%scores = f32[8,12,2048,2048]{2,3,1,0} convolution(%q, %k), window={size=8x12 stride=7x11"
    " lhs_dilate=8x12}, dim_labels=0b1f_0o1i->01bf",
  )
  assert hlo_costs.flops(module) == 2 * 8 * 12 * 2048 * 2048 * 64


def test_convolutions_with_padding():
  """The heads' outputs are summed by a window that walks over padding."""
  module = program(
    "%x = bf16[8,2048,768]{2,1,0} parameter(0)",
    "%w = bf16[768,12,64]{2,1,0} parameter(1)",
    "%y = bf16[8,2048,12,64]{1,3,2,0} convolution(%x.1, %w.1), window={size=1x12"
    " pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
    "%x.1 = bf16[8,2048,768,1]{2,1,0,3} bitcast(%x)",
    "%w.1 = bf16[12,64,768,1]{2,1,0,3} bitcast(%w)",
    "%z = f32[] constant(0)",
  )
  # Each of 12 outputs meets one place of the window.
  assert hlo_costs.flops(module) == 2 * 8 * 2048 * 768 * 12 * 64


def test_plain_convolution_against_the_compiler():
  def convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E501  # fmt: skip

  step = compiled(convolve, (2, 9, 9, 4), (3, 3, 4, 8))
  assert "convolution" in step.as_text()
  assert hlo_costs.flops(hlo.parse(step.as_text())) == step.cost_analysis()["flops"]


# --- traffic --------------------------------------------------------------------------------------


def test_traffic_of_one_product():
  module = hlo.parse(compiled(lambda a, b: a @ b, (64, 32), (32, 16)).as_text())
  assert hlo_costs.hbm_bytes(module) == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_slices_move_what_they_take():
  """A scan reads one layer a turn, not all of them; and writes in place."""
  L, D = 50, 128
  step = compiled(lambda w, x: jax.lax.scan(lambda x, w: (x + w, x), x, w), (L, D), (D,))
  least = 4 * D * L * 2  # every layer read, every state written
  counted = hlo_costs.hbm_bytes(hlo.parse(step.as_text()))
  assert least <= counted < 8 * least < 4 * L * L * D  # a few copies, not L times all of it


def test_fast_memory_is_free():
  module = program(
    "%a = f32[256]{0:T(256)} parameter(0)",
    "%b = f32[256]{0:T(256)S(1)} parameter(1)",
    "%start = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)",
    "%done = f32[256]{0:T(256)S(1)} copy-done(%start)",
    "%sum = f32[256]{0:T(256)S(1)} add(%done, %b)",
    "%out = f32[256]{0:T(256)} copy(%sum)",
  )
  assert hlo_costs.hbm_bytes(module) == 1024 + 1024  # one read, one write


def test_updates_in_place():
  fused = """%fused (p: f32[100,64], q: f32[64], i: s32[]) -> f32[100,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %q = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  %q.1 = f32[1,64]{1,0} bitcast(%q)
  %zero = s32[] constant(0)
  ROOT %dus = f32[100,64]{1,0} dynamic-update-slice(%p, %q.1, %i, %zero)
}
"""
  module = program(
    "%stack = f32[100,64]{1,0} parameter(0)",
    "%row = f32[64]{0} parameter(1)",
    "%at = s32[] parameter(2)",
    "%fusion = f32[100,64]{1,0} fusion(%stack, %row, %at), kind=kLoop, calls=%fused",
    fused=fused,
  )
  assert hlo_costs.hbm_bytes(module) == 256 + 4 + 256  # the row read, its place, the row written


# --- collectives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("groups", "n"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
    ("replica_groups=[4,2]<=[8]", 2),
    ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
  ],
)
def test_groups_in_every_form(groups, n):
  module = program(
    "%x = f32[1000]{0} parameter(0)",
    f"%y = f32[1000]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add",
  )
  assert hlo_costs.collectives(module) == {
    "all-reduce": hlo_costs.Collective(1, round(2 * 4000 * (n - 1) / n))
  }


def test_a_collective_of_one_device_is_none():
  module = program(
    "%x = f32[10]{0} parameter(0)",
    "%y = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups={{0},{1}}, to_apply=%add",
  )
  assert hlo_costs.collectives(module) == {}


def test_permutations_and_pieces():
  """A collective in pieces, which share a channel and a chain, counts once."""
  piece = 'replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="2"}'
  module = program(
    "%x = bf16[100]{0} parameter(0)",
    f"%a = bf16[400]{{0}} all-gather(%x), channel_id=7, {piece}",
    f"%b = bf16[400]{{0}} all-gather(%x), channel_id=7, {piece}",
    "%c = (bf16[100]{0}, bf16[100]{0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=8,"
    " source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
    "%d = bf16[100]{0} collective-permute-done(%c)",
  )
  assert hlo_costs.collectives(module) == {
    "all-gather": hlo_costs.Collective(1, 600),
    "collective-permute": hlo_costs.Collective(1, 200),
  }


def test_kernels_are_listed_with_what_they_take():
  module = program(
    "%q = bf16[2,4,64,32]{3,2,1,0} parameter(0)",
    "%o = bf16[2,4,64,32]{3,2,1,0} custom-call(%q), custom_call_target=\"tpu_custom_call\","
    " metadata={op_name=\"jit(f)/attn/splash\"}, backend_config={\"custom_call_config\":{\"body\":"
    "\"x\",\"cost_estimate\":{\"transcendentals\":\"1\",\"flops\":\"12345\"}}}",
    "%other = f32[] custom-call(%o), custom_call_target=\"AllocateBuffer\"",
  )  # fmt: skip
  (kernel,) = hlo_costs.kernels(module)
  assert kernel.op_name == "jit(f)/attn/splash" and kernel.count == 1 and kernel.flops == 12345
  assert [shape.dims for shape in kernel.operands] == [(2, 4, 64, 32)]


@pytest.fixture(scope="module")
def on_eight_devices():
  """What hlo_checks.py printed."""
  return found_on_eight_devices("hlo_checks.py")


def test_collectives_of_a_sharded_loop(on_eight_devices):
  """x, split in columns, times w, split in rows: one sum over 4 devices a layer, and its bytes."""
  found = on_eight_devices
  assert found["all-reduce"] == [6, 6 * round(2 * found["bytes_of_y"] * 3 / 4)]
  assert found["flops"] == found["expected_flops"]
