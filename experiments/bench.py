"""What the benchmarks share: rounds that alternate, medians with spread, ceilings, peak memory,
a record of where they ran, and a plot.

A benchmark is short:

  ceiling = bench.matmul_ceiling()
  times = bench.alternate({"ours": ours, "hf": hf, "ceiling": ceiling})
  bench.record(
    "bench_forward",
    {
      "seconds": times,
      "speedup": bench.ratio(times, "hf", "ours"),
      "fraction_of_ceiling": bench.fraction(times, "ours", flops, ceiling.work),
    },
    lambda results: [bench.Panel("forward", "seconds", {"": results["seconds"]})],
  )

  python experiments/bench.py       (draws the pictures anew from what is recorded)

What is timed takes no arguments and returns JAX arrays, PyTorch tensors or anything else.
Every figure with a spread is a dictionary with `median`, `min`, `q1`, `q3`, `max`.
"""

import concurrent.futures
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.evals import pictures

# On a GPU both sides share the card: JAX is to take what it needs, and no share of it at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

_LEAST_SECONDS = 0.25  # one sample: quick functions are called several times for it
_PACKAGES = "jax jaxlib flax optax orbax-checkpoint numpy torch transformers tokenizers".split()


# --- time -----------------------------------------------------------------------------------------


def seconds(function: Callable[[], object], calls: int = 1) -> float:
  """Seconds of one call, the mean of `calls` in a row, waited for on the device they ran on."""
  start = time.perf_counter()
  result = [function() for _ in range(calls)][-1]
  _wait(result)
  return (time.perf_counter() - start) / calls


def _wait(result: object) -> None:
  jax.block_until_ready(result)
  torch = sys.modules.get("torch")
  if torch is not None and torch.cuda.is_available():
    torch.cuda.synchronize()


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, dict]:
  """Seconds of each, with their spread; every round calls each, in an order that rotates.

  A machine that others use too slows all of them alike this way: ratios within a round mean
  something. Two calls of each come before, unseen: one that compiles, one that says how often a
  quick one is to be called for a sample. `rounds` of the result holds each round's sample.
  """
  calls = {}
  for name, function in functions.items():
    _wait(function())
    calls[name] = max(1, math.ceil(_LEAST_SECONDS / max(seconds(function), 1e-9)))
  samples: dict[str, list[float]] = {name: [] for name in functions}
  names = list(functions)
  for number in range(rounds):
    shift = number % len(names)
    for name in names[shift:] + names[:shift]:
      samples[name].append(seconds(functions[name], calls[name]))
  return {name: {**spread(row), "rounds": row} for name, row in samples.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least, greatest and quartiles."""
  q1, q3 = np.quantile(values, [0.25, 0.75]).tolist()
  return {
    "median": statistics.median(values), "min": min(values), "q1": q1, "q3": q3, "max": max(values)
  }  # fmt: skip


def ratio(times: Mapping[str, dict], over: str, under: str) -> dict[str, float]:
  """times[over] / times[under]: `median` of the medians, the spread of the rounds' own ratios."""
  rounds = [a / b for a, b in zip(times[over]["rounds"], times[under]["rounds"])]
  return {**spread(rounds), "median": times[over]["median"] / times[under]["median"]}


# --- ceilings -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ceiling:
  """What the machine can do, to be alternated with what is measured; `work` is that of a call."""

  call: Callable[[], object]
  work: float  # FLOPs, or bytes

  def __call__(self) -> object:
    return self.call()


def matmul_ceiling(size: int = 0, dtype: Any = jnp.float32, library: str = "jax") -> Ceiling:
  """A square matrix product of random numbers (a GPU multiplies ones faster); `work` in FLOPs.

  Args:
    size: 0: 2048 on a CPU, 8192 elsewhere.
    dtype: of both factors.
    library: 'jax' or 'torch'. On a CPU they multiply with different code: the ceiling is the
      better of the two.
  """
  size = size or (2048 if jax.devices()[0].platform == "cpu" else 8192)
  if library == "torch":
    import torch

    kind = getattr(torch, jnp.dtype(dtype).name)
    y = torch.randn((size, size), device="cuda" if torch.cuda.is_available() else "cpu").to(kind)
    return Ceiling(lambda: y @ y, 2 * size**3)
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  return Ceiling(lambda: multiply(x, x), 2 * size**3)


def bandwidth_ceiling(size: int = 0) -> Ceiling:
  """Reads and writes memory once (x + 1); `work` in bytes moved. size: MiB of x; 0: 256, or 2048
  on an accelerator: far beyond any cache."""
  size = size or (256 if jax.devices()[0].platform == "cpu" else 2048)
  x = jnp.ones((size * 2**18,), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  return Ceiling(lambda: add(x), 2 * size * 2**20)


def fraction(
  times: Mapping[str, dict], name: str, work: float, ceiling_work: float, ceiling: str = "ceiling"
) -> dict[str, float]:
  """Share of the ceiling's rate that `name` reaches, doing `work` in a call, with its spread."""
  slower = ratio(times, ceiling, name)
  return {key: value * work / ceiling_work for key, value in slower.items()}


# --- memory ---------------------------------------------------------------------------------------


def apart(function: Callable[..., Any], *args: Any) -> Any:
  """What `function(*args)` returns in a process of its own, which gives all its memory back.

  `function` is defined at the top of the benchmark's file, so that the process can import it.
  """
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(function, *args).result()


def peak_memory(function: Callable[..., object], *args: Any) -> dict[str, float]:
  """MiB at the peak of `function(*args)`, run `apart`; what it builds and compiles counts.

  Returns `before` (interpreter and imports), `peak` and `growth` of the process, and `device` if an
  accelerator says its own peak.
  """
  return apart(_peak_memory, function, args)


def _peak_memory(function: Callable[..., object], args: tuple) -> dict[str, float]:
  before = _peak_mib()
  _wait(function(*args))
  peak = _peak_mib()
  result = {"before": before, "peak": peak, "growth": peak - before}
  device = device_peak_mib()
  return {**result, "device": device} if device else result


def device_peak_mib() -> float:
  """The most that this process ever held of an accelerator's memory, by JAX or PyTorch."""
  torch = sys.modules.get("torch")
  if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
    return torch.cuda.max_memory_allocated() / 2**20
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20


def _peak_mib() -> float:
  """Peak resident memory of this process.

  Linux hands ru_maxrss down from the process that started this one, so its own mark is read there.
  """
  status = pathlib.Path("/proc/self/status")
  if status.exists() and (
    mark := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
  ):
    return int(mark.group(1)) / 2**10
  unit = 1 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


# --- record and plot ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel:
  """One picture: lines over a number, or bars over names.

  series: what the legend says -> {x: a number, or a dictionary with a spread}.
  """

  title: str
  y: str
  series: Mapping[str, Mapping[Any, Any]]
  x: str = ""
  log: bool = False


def by_shape(results: Mapping[str, Any], key: str, names: Iterable[str]) -> dict[str, dict]:
  """{name: {shape: results[shape][key][name]}} of those entries that are of a shape, as '4x512'."""
  shapes = {shape: row for shape, row in results.items() if isinstance(row, Mapping) and key in row}
  return {name: {shape: row[key][name] for shape, row in shapes.items()} for name in names}


def record(
  name: str, results: dict, panels: Callable[[dict], Sequence[Panel]] | None = None
) -> None:
  """Writes results, machine and versions to NAME.json, and panels to NAME.png, beside this file.

  On another kind of device its name is added (NAME.nvidia_h200.json): the figures kept from a CPU
  stay. panels: a function of the results as they are recorded, so that they can be drawn again.
  """
  device = jax.devices()[0]
  if device.platform != "cpu":
    name += "." + re.sub(r"\W+", "_", device.device_kind.lower())
  path = pathlib.Path(__file__).with_name(f"{name}.json")
  content = {"where": _where(device), "results": _rounded(results)}
  text = json.dumps(content, indent=1, allow_nan=False)
  path.write_text(text + "\n", encoding="utf-8")
  print(json.dumps(_without_rounds(content["results"]), indent=1))
  print(f"written to {path.name}")
  if panels is not None:
    _plot(path, panels)


def _where(device: jax.Device) -> dict[str, Any]:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "device": f"{device.device_kind} ({device.platform}), {len(jax.devices())} of them",
    "machine": f"{_processor()}, {cores} core(s)",
    "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    "system": platform.platform(),
    "date": datetime.date.today().isoformat(),
    "python": platform.python_version(),
    **versions,
    **{name: os.environ[name] for name in ("XLA_FLAGS", "OMP_NUM_THREADS") if name in os.environ},
  }


def _processor() -> str:
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists() and (
    model := re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8"))
  ):
    return f"{model.group(1)} ({platform.machine()})"
  return platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
  """Five digits: no measurement here knows more."""
  if isinstance(value, Mapping):
    return {key: _rounded(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [_rounded(part) for part in value]
  return float(f"{value:.5g}") if isinstance(value, float) else value


def _without_rounds(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _without_rounds(part) for key, part in value.items() if key != "rounds"}
  return [_without_rounds(part) for part in value] if isinstance(value, list) else value


def _plot(path: pathlib.Path, panels: Callable[[dict], Sequence[Panel]]) -> None:
  """NAME.png of NAME.json."""
  recorded = json.loads(path.read_text(encoding="utf-8"))
  where, shown = recorded["where"], panels(recorded["results"])
  machine = where["machine" if where["device"].startswith("cpu") else "device"]
  footer = f"{machine}, jax {where['jax']}, {where['date']}; lines span the quartiles"
  try:
    with pictures.drawing(path.with_suffix(".png"), len(shown), footer) as axes:
      for axis, panel in zip(axes, shown):
        _draw(axis, panel)
  except ModuleNotFoundError:
    print(f"{path.with_suffix('.png').name} not drawn: pip install matplotlib")
    return
  print(f"drawn in {path.with_suffix('.png').name}")


def _draw(axis: Any, panel: Panel) -> None:
  series = {
    label: {x: _bounds(value) for x, value in row.items()} for label, row in panel.series.items()
  }
  if any(isinstance(x, str) for row in series.values() for x in row):
    pictures.bars(axis, series)
  else:
    for label, row in series.items():
      middle, low, high = np.transpose(list(row.values()))
      errors = np.array([middle - low, high - middle])
      axis.errorbar(list(row), middle, yerr=errors, marker="o", capsize=2, label=label)
    if panel.log:
      axis.set_xscale("log", base=2)
      xs = sorted({x for row in series.values() for x in row})
      axis.set_xticks(xs, [f"{x:,}" for x in xs])
  if panel.log:
    axis.set_yscale("log")
  else:
    axis.set_ylim(bottom=0)
  axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
  pictures.legend(axis)


def _bounds(value: Any) -> tuple[float, float, float]:
  """(middle, low, high); a ratio of medians can lie outside the quartiles of the rounds' ratios."""
  if not isinstance(value, Mapping):
    return float(value), float(value), float(value)
  middle = value["median"]
  return middle, min(middle, value["q1"]), max(middle, value["q3"])


def module_of(path: pathlib.Path) -> Any:
  """The benchmark that recorded a file: bench_forward of bench_forward.nvidia_h200.json."""
  names = [file.stem for file in path.parent.glob("bench_*.py") if path.name.startswith(file.stem)]
  return importlib.import_module(max(names, key=len))


def main() -> None:
  """Draws every recorded benchmark anew that has a picture."""
  for path in sorted(pathlib.Path(__file__).parent.glob("bench_*.json")):
    if panels := getattr(module_of(path), "panels", None):
      _plot(path, panels)


if __name__ == "__main__":
  main()
