"""The real step, compiled and counted; here for CPU devices."""

import functools

import jax
import pytest

from gptneo_jax.config import ModelConfig
from gptneo_jax.planning import aot_compile, topology
from gptneo_jax.planning import report as page
from gptneo_jax.planning.hlo import Shape
from gptneo_jax.planning.hlo_costs import Kernel
from gptneo_jax.training import run_config
from gptneo_jax.training.compiled_step import compile_step, too_large
from gptneo_jax.training.setup import setup_run

SMALL = ModelConfig(
  vocab_size=512, max_position_embeddings=128, hidden_size=32, num_layers=4, num_heads=2,
  window_size=32, remat="full",
)  # fmt: skip


@functools.cache
def compiled(config: ModelConfig, accumulation: int) -> jax.stages.Compiled:
  run_config_ = run_config.base(config)
  run_config_.update(batch_size=4, seq_len=128, grad_accumulation=accumulation)
  run_config_.data.update(source="stdlib", segment_ids=True)
  return compile_step(setup_run(run_config_, jax.devices()[:1], memory=2**40))


@functools.cache
def report(config: ModelConfig, accumulation: int) -> aot_compile.Report:
  return aot_compile.report(compiled(config, accumulation), config, "cpu")


def test_the_step_is_counted():
  found = report(SMALL, 2)
  tokens, params = 4 * 128, SMALL.num_params() - 128 * 32
  # Between what the matrices alone take and what recomputing everything and whole blocks of
  # attention could.
  assert 6 * params * tokens < found.costs.product_flops < 16 * params * tokens
  assert found.compiler_flops < found.costs.product_flops
  assert found.costs.unknown_loops == 0
  assert found.costs.collectives == {} and found.costs.kernels == []
  memory = found.memory
  assert memory.arguments > 12 * SMALL.num_params()  # float32 weights and two moments
  assert 0 < memory.outputs - memory.aliased < 1000  # the metrics: all the rest is donated
  assert memory.needed == memory.arguments + memory.outputs - memory.aliased + (
    memory.temporary + memory.code
  )


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (lambda text: "HloModule jit_step", "ValueError: this is not the text of an HLO module"),
    (lambda text: text.replace("f32[", "f32<"), "Error: "),
    (lambda text: text.replace(" = ", " := "), "Error: "),
  ],
)
def test_a_text_that_is_not_understood_costs_the_roofline_alone(change, problem, capsys):
  """XLA may print its programs in another way tomorrow; whether they fit is still said."""
  config = run_config.base(SMALL)
  config.data.source = "stdlib"
  run = setup_run(config, 1, memory=2**40)

  class Compiled:
    memory_analysis = staticmethod(compiled(SMALL, 2).memory_analysis)
    cost_analysis = staticmethod(compiled(SMALL, 2).cost_analysis)
    as_text = staticmethod(lambda: change(compiled(SMALL, 2).as_text()))

  found = aot_compile.report(Compiled(), SMALL, "cpu")
  assert found.costs is None and problem in found.problem and "\n" not in found.problem
  assert found.memory == report(SMALL, 2).memory
  target = topology.find("t4:1")
  page.print_report(found, 1.0, run, target)
  page.print_speed(found.costs, run, target)
  said = capsys.readouterr().out
  assert f"The compiled program cannot be counted here: {found.problem}" in said
  assert "needed" in said and "by the model's FLOPs" in said


def test_depth_and_parts_are_counted_in_full():
  base, deep = report(SMALL, 2), report(SMALL.replace(num_layers=8), 1)
  blocks = 12 * 32 * 32 * 4 * 128 * 2
  # One more layer is a forward pass, its recomputation (but for the last product), and a backward.
  grown = (deep.costs.product_flops - base.costs.product_flops) / 4
  assert 3.6 * blocks < grown < 6.5 * blocks


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    ("Ran out of memory on HBM, the total memory required for HLO temporaries (28.50G) exceeds"
     " available HBM (15.75G).", 28.5),
    ("Ran out of memory in memory space hbm. Used 21.25G of 15.75G hbm. Exceeded hbm capacity by"
     " 5.50G.", 21.25),
    ("Ran out of memory in memory space hbm. Used 512.00M of 0.25G hbm.", 0.5),
    ("Attempting to reserve 10.51G at the bottom of memory. That was not possible.", None),
    ("Out of memory while trying to allocate 4770354232 bytes.\nBufferAssignment stats: ...", None),
  ],
)  # fmt: skip
def test_complaints_of_memory(message, needed):
  found = too_large(jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}"))
  assert found is not None and str(found) == message.splitlines()[0].rstrip(".")
  assert found.needed == (None if needed is None else needed * 2**30)


def test_other_complaints_are_none_of_memory():
  assert too_large(jax.errors.JaxRuntimeError("INTERNAL: something else")) is None
  new_constant = "INTERNAL: Failed to allocate 98697216 bytes for new constant"
  assert too_large(jax.errors.JaxRuntimeError(new_constant)) is not None


@pytest.mark.parametrize(
  ("part", "results", "products"), [("fwd_residuals", 1, 2), ("dq_no_residuals", 1, 3),
                                    ("dkv_no_residuals", 2, 4), ("dkv_no_residuals", 3, 5)]
)  # fmt: skip
@pytest.mark.parametrize(("layer", "kind"), [(0, "global"), (1, "local")])
@pytest.mark.parametrize("rows", [(2,), ()])  # one row on a device has no axis
def test_flops_of_attention_kernels(part, results, products, layer, kind, rows):
  H, T, K = 4, 256, 64
  shape = Shape("bf16", (*rows, H, T, K))
  name = f"jit(train_step)/while/body/blocks/layer_{layer}/attn/vmap(x)/splash_mha_{part}/pallas"
  small = (Shape("s8", (1, 2, 2)),)
  kernel = Kernel(name, 6, small + (shape,) * 3, (Shape("f32", (64, 64)),) + (shape,) * results, None)  # noqa: E501  # fmt: skip
  config = SMALL.replace(window_size=64)
  assert aot_compile.attention_kind(config, kernel) == (kind, part.split("_")[0])
  pairs = T * (T + 1) / 2 if kind == "global" else 64 * 65 / 2 + (T - 64) * 64
  assert (
    aot_compile.kernel_flops(config, kernel) == 2 * products * sum(rows or (1,)) * H * K * pairs
  )


def test_other_kernels_cost_what_they_say():
  kernel = Kernel("jit(f)/other", 1, (), (), 1e6)
  assert aot_compile.attention_kind(SMALL, kernel) is None
  assert aot_compile.kernel_flops(SMALL, kernel) == 1e6
  assert aot_compile.kernel_flops(SMALL, kernel._replace(flops=None)) == 0
