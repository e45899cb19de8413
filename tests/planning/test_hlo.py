"""Reading the compiler's text: shapes, calls, and how often everything runs."""

import jax
import jax.numpy as jnp
import pytest

from gptneo_jax.planning import hlo

# As TPU's compiler prints it: no count of turns, memory spaces, a kernel's metadata over lines.
TPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0:T(8,128)})->f32[8,16]{1,0:T(8,128)}}

%fused (param_0: f32[8,16]) -> f32[8,16] {
  %param_0 = f32[8,16]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %negate.1 = f32[8,16]{1,0:T(8,128)} negate(%param_0)
}

%body (arg: (s32[], f32[8,16], /*index=2*/u32[])) -> (s32[], f32[8,16], u32[]) {
  %arg = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}, /*index=2*/u32[]{:S(2)}) parameter(0)
  %gte.0 = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %gte.1 = f32[8,16]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %gte.2 = u32[]{:S(2)} get-tuple-element(%arg), index=2
  %two = s32[]{:T(128)} constant(2)
  %add.1 = s32[]{:T(128)} add(%gte.0, %two)
  %fusion.1 = f32[8,16]{1,0:T(8,128)} fusion(%gte.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/while/body/neg"}
  %kernel = f32[8,16]{1,0:T(8,128)S(1)} custom-call(%fusion.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"note":"{block: 1}"
}}, metadata={op_name="jit(step)/while/body/kernel"}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}, /*index=2*/u32[]{:S(2)}) tuple(%add.1, %kernel, %gte.2)
}

%condition (arg.1: (s32[], f32[8,16], /*index=2*/u32[])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}, /*index=2*/u32[]{:S(2)}) parameter(0)
  %gte.3 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %end = s32[]{:T(128)} constant(9)
  ROOT %lt = pred[]{:T(512)} compare(%gte.3, %end), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %flag = u32[]{:S(2)} constant(0)
  %tuple = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}, /*index=2*/u32[]{:S(2)}) tuple(%start, %x, %flag)
  %while = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}, /*index=2*/u32[]{:S(2)}) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[8,16]{1,0:T(8,128)} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_tpu_text():
  module = hlo.parse(TPU)
  assert module.entry == "main"
  assert module.runs == {"main": 1, "body": 5, "fused": 5}  # 0, 2, 4, 6, 8
  assert module.unknown_loops == 0
  body = module.computations["body"]
  kernel = body.by_name["kernel"]
  assert kernel.op_name == "jit(step)/while/body/kernel"
  assert body.operand_shapes(kernel) == [hlo.Shape("f32", (8, 16))]
  assert kernel.shapes == (hlo.Shape("f32", (8, 16), space=1),)
  assert body.by_name["fusion.1"].called == ("fused",)
  assert [user.name for user in body.users["gte.0"]] == ["add.1"]
  assert [shape.size for shape in body.root.shapes] == [4, 512, 4]


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("constant(9)", "constant({9})"),
    ("direction=LT", "direction=NE"),
    ("%add.1 = s32[]{:T(128)} add(", "%add.1 = s32[]{:T(128)} multiply("),
    ("%start = s32[]{:T(128)} copy(%zero)", "%start = s32[]{:T(128)} negate(%zero)"),
  ],
)
def test_a_loop_of_unknown_length_is_owned_up_to(old, new):
  assert old in TPU
  module = hlo.parse(TPU.replace(old, new))
  assert module.unknown_loops == 1
  assert module.runs["body"] == 1


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    (hlo.Shape("bf16", (3, 5)), 30),
    (hlo.Shape("pred", (7,)), 7),
    (hlo.Shape("s4", (8,)), 4),
    (hlo.Shape("f8e4m3fn", (8,)), 8),
    (hlo.Shape("f32", ()), 4),
    (hlo.Shape("token", ()), 0),
  ],
)
def test_sizes(shape, size):
  assert shape.size == size


def test_what_is_no_module():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse("nothing of the kind")


def test_nested_loops_of_a_compiled_function():
  """Counts multiply: 3 parts of 4 layers."""

  def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  def parts(xs, w):
    return jax.lax.scan(lambda total, x: (total + layers(x, w), None), jnp.zeros((8, 8)), xs)[0]

  compiled = jax.jit(parts).lower(jnp.zeros((3, 8, 8)), jnp.zeros((4, 8, 8))).compile()
  module = hlo.parse(compiled.as_text())
  of_dots = [times for _, one, times in module.each() if one.opcode == "dot"]
  assert sum(of_dots) == 12
  assert module.unknown_loops == 0
