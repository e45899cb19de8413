"""Compiles the training step of a run, also for devices that are not here; what that tells."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from gptneo_jax import hlo, hlo_costs, steps
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import out_of_memory
from gptneo_jax.hlo_costs import Collective, Kernel
from gptneo_jax.model import Decoder
from gptneo_jax.sharding import BATCH_SPEC
from gptneo_jax.state import TrainState


class TooLarge(Exception):
  """A program does not fit, as a compiler or a device says; needed: bytes of a device at least."""

  def __init__(self, text: str, needed: float | None = None):
    super().__init__(text)
    self.needed = needed


class Memory(NamedTuple):
  """Bytes of one device, as the compiler states them.

  aliased: the part of the outputs that reuses the memory of arguments. needed: what must be there.
  On a TPU that is the peak and the code: `temporary` counts buffers that take turns at one place
  more than once there, and programs whose sum is far above the memory are accepted (1.3B on v5e:2x4
  in 24 rows: sum 20.8 GiB, peak 14.0 of 15.75). Elsewhere it is the sum.
  """

  arguments: int
  outputs: int
  aliased: int
  temporary: int
  code: int
  peak: int
  needed: int


class Report(NamedTuple):
  """What a compiled step costs one device.

  product_flops: of matrix products, loops taken as often as they run; kernel_flops: of attention
  kernels, counted from what the mask shows. compiler_flops, compiler_bytes: the compiler's own
  count, which takes the body of a loop once. unknown_loops: loops counted once here too.
  """

  memory: Memory
  product_flops: float
  kernel_flops: float
  hbm_bytes: float
  compiler_flops: float
  compiler_bytes: float
  collectives: dict[str, Collective]
  kernels: list[Kernel]
  unknown_loops: int


def compile_step(
  model_config: ModelConfig,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  mesh: Mesh,
  *,
  batch_size: int,
  seq_len: int,
  segments: bool,
  z_loss: float,
  accumulation: int,
  memory: float = math.inf,
) -> jax.stages.Compiled:
  """The step that `train` runs, with its shardings and donation, compiled ahead of time.

  state: abstract, with shardings. memory: bytes of a device. Raises TooLarge: where the compiler
  finds no way to fit the step, as TPU's does, and where it asks a GPU for more than there is.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = steps.make_train_step(
    Decoder(model_config), optimizer, shardings, mesh, z_loss=z_loss, accumulation=accumulation
  )
  kinds = {"inputs": jnp.int32, "targets": jnp.int32}
  if segments:
    kinds |= {"segment_ids": jnp.int32, "weights": jnp.float32}
  sharding = NamedSharding(mesh, BATCH_SPEC)
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, seq_len), dtype, sharding=sharding)
    for name, dtype in kinds.items()
  }
  # The mesh as a description: small constants that are made while tracing are made here, not there.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = cast(jax.stages.Wrapped, step).lower(state, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise too_large(error) or error from None
  platform = mesh.devices.flat[0].platform
  if platform == "gpu" and (needed := memory_of(compiled, platform).needed) > memory:
    raise TooLarge("the compiled step is larger than the device's memory", needed)
  return compiled


def too_large(error: jax.errors.JaxRuntimeError) -> TooLarge | None:
  """The complaint as a TooLarge, if it is one of memory."""
  if not (line := out_of_memory(error)):
    return None
  text = str(error)
  number = r"([\d.]+)([KMGT]?)"
  found = re.search(rf"Used {number} of [\d.]+[KMGT]? hbm", text) or re.search(
    rf"\({number}\) exceeds available HBM", text
  )
  units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  needed = float(found[1]) * units[found[2]] if found else None
  return TooLarge(line, needed)


def memory_of(compiled: jax.stages.Compiled, platform: str) -> Memory:
  stats = compiled.memory_analysis()
  assert stats is not None
  parts = (
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )
  arguments, outputs, aliased, temporary, code = parts
  peak = stats.peak_memory_in_bytes
  held = peak if platform == "tpu" else arguments + outputs - aliased + temporary
  return Memory(*parts, peak=peak, needed=held + code)


def report(compiled: jax.stages.Compiled, config: ModelConfig, platform: str) -> Report:
  """What a compiled step of a model costs one device of a platform ('tpu', 'gpu', 'cpu')."""
  module = hlo.parse(compiled.as_text() or "")
  costs = compiled.cost_analysis() or {}
  kernels = hlo_costs.kernels(module)
  return Report(
    memory=memory_of(compiled, platform),
    product_flops=hlo_costs.flops(module),
    kernel_flops=sum(kernel.count * kernel_flops(config, kernel) for kernel in kernels),
    hbm_bytes=hlo_costs.hbm_bytes(module),
    compiler_flops=costs.get("flops", 0.0),
    compiler_bytes=costs.get("bytes accessed", 0.0),
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
  # (B x) H x T x K, behind the integers of the mask; one row on a device has no axis.
  q = next(s for s in kernel.operands if s.dtype[0] in "bf" and len(s.dims) >= 3)
  products = _PRODUCTS[kind[1]]
  if kind[1] == "dkv" and sum(len(s.dims) >= len(q.dims) for s in kernel.results) > 2:
    products += 1
  return products * 2.0 * math.prod(q.dims) * config.visible_keys(kind[0], q.dims[-2])
