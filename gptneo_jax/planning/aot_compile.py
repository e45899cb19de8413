"""What a compiled training step costs: memory, products, traffic, collectives, by the compiler."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax

from gptneo_jax.config import ModelConfig
from gptneo_jax.planning import hlo, hlo_costs
from gptneo_jax.planning.hlo_costs import Collective, Kernel
from gptneo_jax.training.compiled_step import Memory, memory_of


class Costs(NamedTuple):
  """What the text of a compiled step tells of its work on one device.

  product_flops: of matrix products, loops taken as often as they run. kernel_flops: of attention
  kernels, counted from what the mask shows. unknown_loops: loops that are counted once.
  """

  product_flops: float
  kernel_flops: float
  hbm_bytes: float
  collectives: dict[str, Collective]
  kernels: list[Kernel]
  unknown_loops: int


class Report(NamedTuple):
  """What a compiled step costs one device.

  compiler_flops, compiler_bytes: the compiler's own count, which takes the body of a loop once.
  costs: None where the program's text cannot be read; `problem` says why.
  """

  memory: Memory
  compiler_flops: float
  compiler_bytes: float
  costs: Costs | None
  problem: str = ""


def report(compiled: jax.stages.Compiled, config: ModelConfig, platform: str) -> Report:
  """What a compiled step of a model costs one device of a platform ('tpu', 'gpu', 'cpu')."""
  costs, problem = None, ""
  try:
    costs = count(compiled.as_text() or "", config)
  except Exception as error:  # XLA's text has no stated form, and the memory does not need it
    problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
  counted = compiled.cost_analysis() or {}
  return Report(
    memory=memory_of(compiled, platform),
    compiler_flops=counted.get("flops", 0.0),
    compiler_bytes=counted.get("bytes accessed", 0.0),
    costs=costs,
    problem=problem,
  )


def count(text: str, config: ModelConfig) -> Costs:
  """The costs that are read from the text of a compiled step of a model."""
  module = hlo.parse(text)
  kernels = hlo_costs.kernels(module)
  return Costs(
    product_flops=hlo_costs.flops(module),
    kernel_flops=sum(kernel.count * kernel_flops(config, kernel) for kernel in kernels),
    hbm_bytes=hlo_costs.hbm_bytes(module),
    collectives=hlo_costs.collectives(module),
    kernels=kernels,
    unknown_loops=module.unknown_loops,
  )


# --- attention kernels ----------------------------------------------------------------------------

# Matrix products over (query, key) pairs in each of splash attention's kernels: scores and values;
# scores, their gradient, that of q; scores, its gradient, those of k and v; and q's too where the
# kernel is the fused one, which has three results of the shape of q.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def attention_kind(config: ModelConfig, kernel: Kernel) -> tuple[str, str] | None:
  """('local', 'dq') of a splash kernel: its layers' attention, and which part it computes."""
  place = re.search(r"/layer_(\d+)/attn/", kernel.op_name)
  part = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", kernel.op_name)
  if not (place and part):
    return None
  return config.attention_pattern[int(place[1])], part[1]


def kernel_flops(config: ModelConfig, kernel: Kernel) -> float:
  """FLOPs of one run of an attention kernel, for the keys that the mask shows; others as stated."""
  kind = attention_kind(config, kernel)
  if kernel.flops is not None or kind is None:
    return kernel.flops or 0.0
  # (B x) H x T x K, after the integers of the mask; one row on a device has no axis.
  q = next(s for s in kernel.operands if s.dtype[0] in "bf" and len(s.dims) >= 3)
  products = _PRODUCTS[kind[1]]
  if kind[1] == "dkv" and sum(len(s.dims) >= len(q.dims) for s in kernel.results) > 2:
    products += 1
  return products * 2.0 * math.prod(q.dims) * config.visible_keys(kind[0], q.dims[-2])
