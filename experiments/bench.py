"""What the benchmarks share: rounds that alternate, medians, and a record of where they ran."""

import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def seconds(function: Callable[[], object]) -> float:
  """One timed call, waited for."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, dict]:
  """Median, least and greatest seconds of each; every round calls each once, after one call unseen.

  A machine that others use too slows all of them alike this way: ratios of medians mean something.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  times = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      times[name].append(seconds(function))
  return {
    name: {"median": statistics.median(row), "min": min(row), "max": max(row)}
    for name, row in times.items()
  }


def matmul_ceiling(size: int = 2048) -> Callable[[], object]:
  """A float32 matrix product of 2 * size^3 FLOPs, to be alternated with what is measured."""
  x = jnp.ones((size, size))
  multiply = jax.jit(jnp.matmul)
  return lambda: multiply(x, x)


def record(name: str, results: dict) -> None:
  """Writes results beside the benchmarks as NAME.json, with machine and versions; prints them."""
  device = jax.devices()[0]
  where = {
    "device": f"{device.device_kind} ({device.platform})",
    "machine": f"{platform.machine()}, {len(jax.devices())} device(s)",
    "python": platform.python_version(),
    "jax": jax.__version__,
  }
  path = pathlib.Path(__file__).with_name(f"{name}.json")
  path.write_text(json.dumps({"where": where, "results": results}, indent=1) + "\n")
  print(json.dumps(results, indent=1))
  print(f"written to {path.name}")
