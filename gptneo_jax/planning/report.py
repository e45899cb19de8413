"""The page that `plan` prints: what is asked for, what it needs, what the compiler says of it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gptneo_jax import hardware, sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.model.methods import FULL
from gptneo_jax.planning import aot_compile, scaling
from gptneo_jax.planning.aot_compile import Costs, Report
from gptneo_jax.planning.topology import Topology
from gptneo_jax.training import fitting, memory_estimate, parse_config
from gptneo_jax.training.memory_estimate import size_text
from gptneo_jax.training.setup import Run

# Of the roofline, for a second figure: 1.3B on an H100 reaches 46% of the peak
# (experiments/bench_train_step_neo_1p3b.nvidia_h100_80gb_hbm3.json).
_SHARE = 0.5


def print_run(path: str, run: Run, target: Topology) -> None:
  """What is asked for, and what was chosen where the config leaves it open."""
  config, model = run.config, run.model_config
  exact, full = (
    model.flops_per_token(config.seq_len, attention=kind) for kind in ("exact", "full_square")
  )
  kind = target.devices[0].device_kind if target.devices else target.chip and target.chip.kind
  print(f"{path} on {target.name}: {target.size} x {kind}")
  _print_rows(
    ("mesh", " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())),
    ("parameters", f"{model.num_params():,} in {model.param_dtype}, computed in {model.dtype}"),
    *_learning_rows(run),
    ("FLOPs per token", f"{exact:.3e} exact, {full:.3e} with attention counted as full squares"),
    ("optimizer", config.optimizer.name),
    ("batch", f"{config.batch_size} x {config.seq_len} tokens"),
    *_choice_rows(run),
  )
  if target.chip and not target.chip.bfloat16 and config.model.dtype == "float32":
    print(f"  a {target.chip.kind} has no bfloat16: --config.model.dtype=float32 trains there")


def print_scaling(run: Run) -> None:
  """The run's tokens, batch and learning rate beside those of published runs of its size."""
  config, size = run.config, run.model_config.num_params()
  theirs, batch = scaling.published(size), config.batch_size * config.seq_len
  tokens = (
    f"{config.steps * batch:,}, {config.steps * batch / size:.3g} for each parameter"
    if not config.epochs
    else f"those of {config.epochs:g} epoch(s)"
  )
  rate = f"{config.optimizer.learning_rate:.2g} at the peak"
  print("\nThis run beside published ones of its size, trained from random weights by Adam")
  _print_rows(
    ("tokens", f"{tokens}; the least loss for the FLOPs: {_count(theirs.tokens)},"
     f" {scaling.COMPUTE_OPTIMAL} for each (arXiv:2203.15556)"),
  )  # fmt: skip
  if theirs.smaller:
    smallest = f"GPT-3's smallest, of 125 M: {theirs.rate:.2g} (arXiv:2005.14165)"
    _print_rows(("learning rate", f"{rate}; {smallest}"))
  else:
    _print_rows(
      ("batch", f"{batch:,} tokens; GPT-3's: {_count(theirs.batch)} (arXiv:2005.14165)"),
      ("learning rate", f"{rate}; GPT-3's: {theirs.rate:.2g}"),
    )


def _count(number: float) -> str:
  """ "2.5 G": three digits and the unit."""
  power = min(3, int(np.log10(number)) // 3)
  return f"{number / 1000**power:.3g} {' kMG'[power]}".rstrip()


def _learning_rows(run: Run) -> Iterator[tuple[str, str]]:
  if run.method != FULL:
    method = f": {run.method.lora.describe()}" if run.method.lora else ""
    yield "trainable", f"{run.num_trainable():,}{method}"


def print_choice(run: Run) -> None:
  """What was chosen where the compiler did not fit what the estimate had chosen."""
  print("\nThe compiler found no way to fit that; what it fits:")
  _print_rows(*_choice_rows(run))


def _choice_rows(run: Run) -> Iterator[tuple[str, str]]:
  parts, remat = run.choice
  rows = run.config.batch_size // (sharding.batch_ways(run.mesh) * parts)
  chosen = " (chosen to fit)"
  yield (
    "taken in",
    f"{parts} part(s): {rows} row(s) on a device at a time"
    + (chosen if run.asked.grad_accumulation == 0 else ""),
  )
  yield "remat", remat + (chosen if run.asked.model.remat == parse_config.AUTO else "")


def print_estimate(needs: dict[str, int], available: float) -> None:
  low, high = (f"{share:.0%}" for share in memory_estimate.NEARNESS)
  print(
    f"\nA training step on each device, by estimate ({low} to {high} of TPU's compiler's count)"
  )
  _print_rows(
    *((name, f"{size_text(size):>12}") for name, size in needs.items() if size),
    ("sum", f"{size_text(memory_estimate.total(needs)):>12} of {size_text(available)}"),
  )


def print_uses(model: ModelConfig, seq_len: int, target: Topology) -> None:
  half = None if target.chip and not target.chip.bfloat16 else "bfloat16"
  uses = memory_estimate.use_bytes(model, seq_len, half=half)
  there = "; ".join(f"{chip.name} {chip.memory_gib:.1f}" for chip in hardware.CHIPS.values())
  print(f"\nOther uses of the model on one device, by estimate (GiB there: {there})")
  _print_rows(
    *((use.name, f"{size_text(use.bytes):>12}  {use.terms}") for use in uses),
    (
      "convert",
      f"{size_text(memory_estimate.convert_bytes(model)):>12}  of the host's, on no device",
    ),
  )


def print_report(report: Report, seconds: float, run: Run, target: Topology) -> None:
  """What the compiler says of a step, which took it `seconds`."""
  memory = report.memory
  print(f"\nCompiled in {seconds:.0f} s. Memory of each device, by the compiler's count")
  _print_rows(
    *((name, f"{size_text(getattr(memory, name)):>12}") for name in ("arguments", "outputs")),
    ("aliased", f"{size_text(memory.aliased):>12}  (outputs in the place of donated arguments)"),
    ("temporary", f"{size_text(memory.temporary):>12}"),
    ("code", f"{size_text(memory.code):>12}"),
    ("peak", f"{size_text(memory.peak):>12}  (alive at once)"),
    ("needed", f"{size_text(memory.needed):>12}"),
  )
  costs = report.costs
  if costs is None:
    print(f"\nThe compiled program cannot be counted here: {report.problem}")
    return
  config, model = run.config, run.model_config
  tokens = config.batch_size * config.seq_len
  counted = costs.product_flops + costs.kernel_flops
  exact = model.flops_per_token(config.seq_len) * tokens / target.size
  print("\nA step on each device")
  _print_rows(
    ("FLOPs", f"{counted:.3e} in the program's products and kernels, loops counted in full"),
    ("", f"{exact:.3e} of the model (exact); the rest is recomputation"),
    ("", f"{report.compiler_flops:.3e} in the compiler's analysis, bodies of loops once"),
    ("memory traffic", f"{costs.hbm_bytes:.3e} bytes at least, loops counted in full"),
    ("", f"{report.compiler_bytes:.3e} in the compiler's analysis, bodies of loops once"),
    *(
      (name, f"{one.sent_bytes:.3e} bytes sent in {one.count:,} collectives")
      for name, one in sorted(costs.collectives.items())
    ),
    *_kernel_rows(costs, model),
  )
  if costs.unknown_loops:
    print(f"  ({costs.unknown_loops} loop(s) of unknown length are counted once)")


def _kernel_rows(costs: Costs, model: ModelConfig) -> Iterator[tuple[str, str]]:
  kinds: dict[str, dict[str, int]] = {}
  for kernel in costs.kernels:
    if kind := aot_compile.attention_kind(model, kernel):
      parts = kinds.setdefault(kind[0], {})
      parts[kind[1]] = parts.get(kind[1], 0) + kernel.count
  for kind in dict.fromkeys(model.attention_pattern):
    if kind in kinds:
      runs = ", ".join(f"{part} {count}" for part, count in sorted(kinds[kind].items()))
      yield f"{kind} attention", f"splash (tpu_custom_call): {runs} runs"
    else:
      yield f"{kind} attention", "plain XLA"


def print_speed(costs: Costs | None, run: Run, target: Topology) -> None:
  """The roofline of a step and of the run, by the compiled program or by the products alone."""
  config, model = run.config, run.model_config
  tokens = config.batch_size * config.seq_len
  if target.chip is None:
    print(f"\nThe run: {_all_steps(config)}")
    return
  times, basis = _times(costs, run, target)
  bound = max(times, key=lambda name: times[name])
  seconds = times[bound]
  exact = model.flops_per_token(config.seq_len) * tokens / target.size
  peak = target.chip.peak_flops(jnp.dtype(model.dtype).itemsize)
  print(f"\nRoofline of {target.chip.name}: no step is faster ({basis})")
  _print_rows(
    *((name, _seconds(time)) for name, time in times.items()),
    (
      "step",
      f"{_seconds(seconds)}, bound by {bound}: {tokens / seconds:,.0f} tokens/s,"
      f" model FLOPs {exact / seconds / peak:.0%} of peak",
    ),
    ("the run", _all_steps(config, seconds)),
  )


def _all_steps(config: ConfigDict, step_seconds: float = 0.0) -> str:
  """Steps and tokens, and how long they take, where that of a step is given."""
  if config.epochs:
    return f"{config.epochs:g} epoch(s), of as many steps as the data say, which are not read here"
  tokens, seconds = config.steps * config.batch_size * config.seq_len, config.steps * step_seconds
  time = (
    f": {_duration(seconds)} at the roofline, {_duration(seconds / _SHARE)} at {_SHARE:.0%} of it"
  )
  return f"{config.steps:,} steps are {tokens:,} tokens" + (time if seconds else "")


def _times(costs: Costs | None, run: Run, target: Topology) -> tuple[dict[str, float], str]:
  """Seconds that a step takes at least, by what bounds it, and by which rates."""
  chip, config, model = target.chip, run.config, run.model_config
  assert chip is not None
  peak = chip.peak_flops(jnp.dtype(model.dtype).itemsize)
  basis = f"{peak / 1e12:.0f} TFLOP/s"
  if costs is None:
    tokens = config.batch_size * config.seq_len / target.size
    flops = tokens * model.flops_per_token(config.seq_len) * fitting.work(model.remat)
    return {"compute": flops / peak}, f"{basis}, by the model's FLOPs and what is computed again"
  times = {
    "compute": (costs.product_flops + costs.kernel_flops) / peak,
    "memory": costs.hbm_bytes / (chip.hbm_gbytes * 1e9),
  }
  basis += f", {chip.hbm_gbytes:.0f} GB/s of memory"
  sent = sum(one.sent_bytes for one in costs.collectives.values())
  if sent and chip.link_gbytes and chip.is_tpu:
    links = chip.links_bytes_per_second(target.shape)
    times["links"] = sent / links
    basis += f", {links / 1e9:.0f} GB/s of links"
  return times, basis


def _seconds(time: float) -> str:
  return f"{time:8.3f} s" if time >= 0.1 else f"{1000 * time:8.3f} ms"


def _duration(seconds: float) -> str:
  """ "3.2 days", "40 minutes": in the largest unit of which there are two."""
  for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.1f} {unit}"
  return f"{seconds:.0f} seconds"


def _print_rows(*rows: tuple[str, str]) -> None:
  for name, text in rows:
    print(f"  {name:<16} {text}")
