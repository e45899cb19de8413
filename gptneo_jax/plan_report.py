"""The page that `plan` prints: what is asked for, what it needs, what the compiler says of it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
from ml_collections import ConfigDict

from gptneo_jax import chips, compilation, preflight, sharding
from gptneo_jax.compilation import Report
from gptneo_jax.config import ModelConfig
from gptneo_jax.preflight import GIB
from gptneo_jax.topology import Topology


def print_run(path: str, config: ConfigDict, model: ModelConfig, target: Topology) -> None:
  mesh = sharding.mesh_sizes(**config.mesh.to_dict(), num_devices=target.size)
  rows = config.batch_size // (mesh[0] * mesh[1] * config.grad_accumulation)
  exact, full = (
    model.flops_per_token(config.seq_len, attention=kind) for kind in ("exact", "full_square")
  )
  kind = target.devices[0].device_kind if target.devices else target.chip and target.chip.kind
  print(f"{path} on {target.name}: {target.size} x {kind}")
  _print_rows(
    ("mesh", " x ".join(f"{name} {size}" for name, size in zip(sharding.MESH_AXES, mesh))),
    ("parameters", f"{model.num_params():,} in {model.param_dtype}, computed in {model.dtype}"),
    ("FLOPs per token", f"{exact:.3e} exact, {full:.3e} with attention counted as full squares"),
    (
      "batch",
      f"{config.batch_size} x {config.seq_len} tokens in {config.grad_accumulation} part(s):"
      f" {rows} row(s) on a device at a time",
    ),
    ("optimizer", f"{config.optimizer.name}; remat {model.remat}"),
  )
  if target.chip and target.chip.name == "t4" and model.dtype == "bfloat16":
    print("  a T4 has no bfloat16: --config.model.dtype=float32 trains there")


def print_estimate(needs: dict[str, int], available: float) -> None:
  print("\nA training step, GiB on each device, by estimate")
  _print_rows(
    *((name, f"{size / GIB:8.2f}") for name, size in needs.items()),
    ("sum", f"{sum(needs.values()) / GIB:8.2f} of {available / GIB:.2f}"),
  )


def print_tasks(model: ModelConfig, seq_len: int, target: Topology) -> None:
  half = None if target.chip and target.chip.name == "t4" else "bfloat16"
  tasks = preflight.task_bytes(model, seq_len, half=half)
  there = "; ".join(f"{chip.name} {chip.memory_gib:.1f}" for chip in chips.CHIPS.values())
  print(f"\nOther uses of the model on one device, GiB, by estimate ({there})")
  _print_rows(
    *((task.name, f"{task.bytes / GIB:8.2f}  {task.terms}") for task in tasks),
    ("convert", f"{preflight.convert_bytes(model) / GIB:8.2f}  of the host's memory, no device"),
  )


def print_report(report: Report, config: ConfigDict, model: ModelConfig, target: Topology) -> None:
  memory = report.memory
  print(f"\nCompiled in {report.seconds:.0f} s. GiB on each device, by the compiler's count")
  _print_rows(
    *((name, f"{getattr(memory, name) / GIB:8.2f}") for name in ("arguments", "outputs")),
    ("aliased", f"{memory.aliased / GIB:8.2f}  (outputs in the memory of arguments: donated)"),
    ("temporary", f"{memory.temporary / GIB:8.2f}"),
    ("code", f"{memory.code / GIB:8.2f}"),
    ("peak", f"{memory.peak / GIB:8.2f}  (alive at once)"),
    ("needed", f"{memory.needed / GIB:8.2f}"),
  )
  tokens = config.batch_size * config.seq_len
  counted = report.product_flops + report.kernel_flops
  exact = model.flops_per_token(config.seq_len) * tokens / target.size
  print("\nA step on each device")
  _print_rows(
    ("FLOPs", f"{counted:.3e} in the program's products and kernels, loops counted in full"),
    ("", f"{exact:.3e} of the model (exact); the rest is recomputation"),
    ("", f"{report.compiler_flops:.3e} in the compiler's analysis, bodies of loops once"),
    ("memory traffic", f"{report.hbm_bytes:.3e} bytes at least, loops counted in full"),
    ("", f"{report.compiler_bytes:.3e} in the compiler's analysis, bodies of loops once"),
    *(
      (name, f"{one.sent_bytes:.3e} bytes sent in {one.count:,} collectives")
      for name, one in sorted(report.collectives.items())
    ),
    *_kernel_rows(report, model),
  )
  if report.unknown_loops:
    print(f"  ({report.unknown_loops} loop(s) of unknown length are counted once)")
  if target.chip:
    _print_roofline(report, config, model, target)


def _kernel_rows(report: Report, model: ModelConfig) -> Iterator[tuple[str, str]]:
  kinds: dict[str, dict[str, int]] = {}
  for kernel in report.kernels:
    if kind := compilation.attention_kind(model, kernel):
      parts = kinds.setdefault(kind[0], {})
      parts[kind[1]] = parts.get(kind[1], 0) + kernel.count
  for kind in dict.fromkeys(model.attention_pattern):
    if kind in kinds:
      runs = ", ".join(f"{part} {count}" for part, count in sorted(kinds[kind].items()))
      yield f"{kind} attention", f"splash (tpu_custom_call): {runs} runs"
    else:
      yield f"{kind} attention", "plain XLA"


def _print_roofline(
  report: Report, config: ConfigDict, model: ModelConfig, target: Topology
) -> None:
  chip = target.chip
  assert chip is not None
  peak = chip.peak_flops(jnp.dtype(model.dtype).itemsize)
  sent = sum(one.sent_bytes for one in report.collectives.values())
  times = {
    "compute": (report.product_flops + report.kernel_flops) / peak,
    "memory": report.hbm_bytes / (chip.hbm_gbytes * 1e9),
  }
  basis = f"{peak / 1e12:.0f} TFLOP/s, {chip.hbm_gbytes:.0f} GB/s of memory"
  if sent and chip.link_gbytes and chip.is_tpu:
    links = chip.links_bytes_per_second(target.shape)
    times["links"] = sent / links
    basis += f", {links / 1e9:.0f} GB/s of links"
  bound = max(times, key=lambda name: times[name])
  tokens = config.batch_size * config.seq_len
  exact = model.flops_per_token(config.seq_len) * tokens / target.size
  print(f"\nRoofline of {chip.name}: no step is faster ({basis})")
  _print_rows(
    *((name, f"{seconds:8.3f} s") for name, seconds in times.items()),
    (
      "step",
      f"{times[bound]:8.3f} s, bound by {bound}: {tokens / times[bound]:,.0f} tokens/s,"
      f" model FLOPs {exact / times[bound] / peak:.0%} of peak",
    ),
  )


def _print_rows(*rows: tuple[str, str]) -> None:
  for name, text in rows:
    print(f"  {name:<16} {text}")
