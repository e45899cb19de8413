"""Says what a run will need, before anything runs: parameters, FLOPs, memory, and whether it fits.

  python -m gptneo_jax.plan --config configs/neo_1p3b.py                        (for this machine)
  python -m gptneo_jax.plan --config configs/neo_1p3b.py --topology v5e:2x4
  python -m gptneo_jax.plan --config configs/neo_125m.py --topology t4:1 --config.batch_size=8

For a TPU topology (v4, v5e, v5p, v6e) the training step, as train.py runs it, is compiled ahead of
time by TPU's own compiler, which needs no TPU: pip install 'gptneo_jax[tpu]'. It takes a minute or
two. GPUs (t4, l4, a100, a100-80gb, h100, h200, with :N for N of them) are estimated. `here` means
the devices of this machine, and compiles for them. What does not fit is answered with settings that
do.

The last line is `fits: …` or `does not fit: …`. Exit status: 0 if it fits, 1 if it does not or for
a mistake.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from gptneo_jax import hardware
from gptneo_jax.planning import advice, aot_compile, report, topology
from gptneo_jax.planning.aot_compile import Report
from gptneo_jax.planning.topology import Topology
from gptneo_jax.training import config_file, fitting, memory_estimate, run_config
from gptneo_jax.training.adopt_model import adopt_model
from gptneo_jax.training.compiled_step import TooLarge, compile_step, fit
from gptneo_jax.training.fitting import Changes
from gptneo_jax.training.memory_estimate import GIB, size_text
from gptneo_jax.training.setup import Run, setup_run


def main() -> None:
  """The command."""
  config_flags.DEFINE_config_file("config", None, "FILE.py, or FILE.py:runlocal to shrink.")
  flags.DEFINE_string(
    "topology", None, "What to plan for: v5e:2x4, t4:1, …, or 'here'; else this machine, estimated."
  )
  config_file.run_with_config(_run_command)


def _run_command(config: ConfigDict) -> int:
  wanted = flags.FLAGS.topology
  if wanted not in (None, topology.HERE) and "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")  # devices here are not needed, nor to be taken
  # What is compiled for devices that are not here cannot be read back: it is not kept either.
  jax.config.update("jax_enable_compilation_cache", False)
  return run(config, wanted, config_path=config_file.config_path())


def run(config: ConfigDict, topology_name: str | None, *, config_path: str = "the config") -> int:
  """Prints what a run needs on a topology; 0 if it fits, 1 if it does not.

  config: as the files in configs/ make it. topology_name: None for this machine, estimated.
  Raises UserError.
  """
  config = _without_data(adopt_model(config))
  target = topology.find(topology_name or topology.HERE)
  compiles = topology_name is not None and bool(target.devices)
  config, forced = _computable(config, target)
  memory, available = _memory(target)
  planned = setup_run(config, target.devices or target.size, memory)
  needs = fitting.estimate(planned.config, target.size)

  report.print_run(config_path, planned, target)
  if planned.task.PRETRAINS and not config.init_from:
    report.print_scaling(planned)
  report.print_estimate(needs, available)
  report.print_uses(planned.model_config, config.seq_len, target)

  # --- compile, or refuse what cannot fit whatever the compiler does -----------------------------
  estimated = needed = float(memory_estimate.total(needs))
  how, costs = "by estimate", None
  if compiles and memory_estimate.certain_bytes(needs) > available:
    print("\nnot compiled: parameters, gradients and optimizer alone are more than there is")
  elif compiles:
    how = "by the compiler's count"
    try:
      compiled, (found, seconds) = _compile(planned, target)
      if compiled.choice != planned.choice:
        report.print_choice(compiled)
      planned, costs, needed = compiled, found.costs, found.memory.needed
      report.print_report(found, seconds, planned, target)
    except TooLarge as error:
      print("\nthe compiler found no way to fit the step")
      estimated = memory_estimate.total(fitting.estimate(config, target.size))
      needed = max(error.needed or estimated, available + 1)
  report.print_speed(costs, planned, target)
  fits = needed <= available

  if not fits:
    budget = min(available, available * estimated / needed)  # of what is estimated
    _print_advice(config, target, budget, compiles, forced)
  elif forced:
    print(f"\nTo train there:\n  {_command('train', forced)}")
  print(
    f"{'fits' if fits else 'does not fit'}: {size_text(needed)} needed on each of"
    f" {target.size} device(s), {how}; {size_text(available)} there"
  )
  return 0 if fits else 1


def _without_data(config: ConfigDict) -> ConfigDict:
  """The config with a name for its data where it has none: nothing is read to plan."""
  if config.data.path or config.data.source in ("stdlib", "mixture"):
    return config
  return run_config.apply(config, {"data.path": "DATA"})


def _computable(config: ConfigDict, target: Topology) -> tuple[ConfigDict, Changes]:
  """The config in a type that the chip computes in, and what had to be changed for that."""
  if config.model.dtype != "bfloat16" or target.chip is None or target.chip.bfloat16:
    return config, {}
  changes = {"model.dtype": "float32"}
  return fitting.apply(config, changes), changes


def _memory(target: Topology) -> tuple[float, float]:
  """Bytes of one device that a run counts on, and that there are now: the same but on a CPU."""
  if target.name == topology.HERE:
    here = jax.local_devices()
    return memory_estimate.memory_bytes(here), memory_estimate.available_bytes(here)
  assert target.chip is not None
  return target.chip.memory_gib * GIB, target.chip.memory_gib * GIB


# --- compiling ------------------------------------------------------------------------------------


def _compile(planned: Run, target: Topology) -> tuple[Run, tuple[Report, float]]:
  """The run as `train` would compile it, what its step costs, and the seconds of compiling.

  Says on standard error that it is compiling. Raises TooLarge.
  """

  def compile_and_count(chosen: Run) -> tuple[Report, float]:
    start = time.perf_counter()
    with _patience(f"compiling the step for {target.name}"):
      compiled = compile_step(chosen)
    seconds, platform = time.perf_counter() - start, target.devices[0].platform
    return aot_compile.report(compiled, chosen.model_config, platform), seconds

  return fit(planned, compile_and_count)


@contextlib.contextmanager
def _patience(what: str) -> Iterator[None]:
  """Says on standard error what takes long, and every 15 seconds for how long it has run."""
  done, start = threading.Event(), time.perf_counter()

  def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

  def wait() -> None:
    while not done.wait(15):
      say(f"{what}: {time.perf_counter() - start:.0f} s")

  say(f"{what}, a minute or two")
  thread = threading.Thread(target=wait, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


# --- advice ---------------------------------------------------------------------------------------


def _print_advice(
  config: ConfigDict, target: Topology, budget: float, compiles: bool, forced: Changes
) -> None:
  """Settings that fit: the least change on this topology, and if that changes what is learnt, on
  the smallest larger one that does with less."""
  search = functools.partial(advice.settings, config, fits=_needed if compiles else None)
  options = [search(target, budget, recipe=True)]
  if options[0] is None:
    options = [search(target, budget, recipe=False)]
    for name in topology.larger(target):
      size, memory = hardware.num_chips(name.partition(":")[2]), _memory(target)[0]
      if advice.find(config, size, advice.fitting(config, size, memory), recipe=True) is None:
        continue  # not worth a compilation
      options.append(search(topology.find(name), memory, recipe=True))
      if options[-1]:
        break
  found = [option for option in options if option]
  print()
  if not found:
    print("No setting known here makes it fit; a smaller model or a shorter seq_len would.")
  for option in found:
    how = "compiled" if compiles else "estimated"
    where = f" on {option.topology}" if option.topology != target.name else ""
    print(f"This fits{where} ({size_text(option.needed)}, {how}):")
    changes = forced | option.changes
    print(f"  {_command('plan', changes, option.topology)}\n  {_command('train', changes)}")


def _needed(config: ConfigDict, target: Topology) -> float | None:
  """Bytes that a config needs of each device, as compiled; None if they are not there."""
  memory, available = _memory(target)
  with contextlib.suppress(TooLarge):
    _, (found, _) = _compile(setup_run(config, target.devices, memory), target)
    if found.memory.needed <= available:
      return found.memory.needed
  return None


def _command(program: str, changes: Changes, on_topology: str | None = None) -> str:
  """This command, or that of another program, with settings changed.

  Those given before stay unless they are changed; `train` runs where it is, on no topology.
  """
  kept, skip = [], False
  for argument in sys.argv[1:]:
    name, equals, _ = argument.lstrip("-").partition("=")
    if skip:
      skip = False
    elif name == "topology" or name.removeprefix("config.") in changes:
      skip = not equals
    else:
      kept.append(shlex.quote(argument))
  there = [f"--topology={on_topology}"] if on_topology else []
  command = ["python", "-m", f"gptneo_jax.{program}", *kept, *there]
  return " ".join([*command, *([advice.flags_text(changes)] if changes else [])])


if __name__ == "__main__":
  main()
