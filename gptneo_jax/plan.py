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
import sys
import threading
import time
from collections.abc import Iterator

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from gptneo_jax import (
  advice,
  chips,
  cli,
  compilation,
  hosts,
  plan_report,
  preflight,
  sections,
  sharding,
  topology,
)
from gptneo_jax.advice import Changes
from gptneo_jax.compilation import Report, TooLarge
from gptneo_jax.preflight import GIB
from gptneo_jax.topology import Topology


def main() -> None:
  """The command."""
  config_flags.DEFINE_config_file("config", None, "FILE.py, or FILE.py:runlocal to shrink.")
  flags.DEFINE_string(
    "topology", None, "What to plan for: v5e:2x4, t4:1, …, or 'here'; else this machine, estimated."
  )
  cli.run_with_config(_run_command)


def _run_command(config: ConfigDict) -> int:
  wanted = flags.FLAGS.topology
  if wanted not in (None, topology.HERE) and "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")  # devices here are not needed, nor to be taken
  # What is compiled for devices that are not here cannot be read back: it is not kept either.
  jax.config.update("jax_enable_compilation_cache", False)
  target = topology.find(wanted or topology.HERE)
  compiles = wanted is not None and bool(target.devices)
  parts = sections.read(config)
  estimates = advice.Estimates(config)
  needs = estimates({}, target.size)
  _check_hosts(config, parts, target)
  available = _available(target)

  plan_report.print_run(cli.config_path(), config, parts.model, target)
  plan_report.print_estimate(needs, available)
  plan_report.print_tasks(parts.model, config.seq_len, target)

  # --- compile, or refuse what cannot fit whatever the compiler does -----------------------------
  estimated = needed = float(sum(needs.values()))
  how, budget = "by estimate", available  # of what is estimated, for advice
  if compiles and needs["parameters"] + needs["optimizer"] > available:
    print("\nnot compiled: parameters and optimizer alone are more than there is")
  elif compiles:
    how = "by the compiler's count"
    report = _compile(config, target)
    if isinstance(report, TooLarge):
      print("\nthe compiler found no way to fit the step")
      needed = max(report.needed or estimated, available + 1)
    else:
      plan_report.print_report(report, config, parts.model, target)
      needed = report.memory.needed
    budget = min(available, available * estimated / needed)
  fits = needed <= available

  if not fits:
    _print_advice(config, target, estimates, budget, compiles)
  print(
    f"{'fits' if fits else 'does not fit'}: {needed / GIB:.2f} GiB needed on each of"
    f" {target.size} device(s), {how}; {available / GIB:.2f} GiB there"
  )
  return 0 if fits else 1


def _check_hosts(config: ConfigDict, parts: sections.Sections, target: Topology) -> None:
  """Raises UserError if the data cannot be shared out among the hosts, as `train` would.

  Where the devices are not known, neither are their hosts.
  """
  if target.devices:
    with sections.user_errors():
      mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=target.devices)
    hosts.streams_by_host(mesh, config.batch_size, parts.data.num_streams)


def _available(target: Topology) -> float:
  """Bytes of one device that a program can have."""
  if target.name == topology.HERE:
    return preflight.available_bytes(jax.local_devices())
  assert target.chip is not None
  return target.chip.memory_gib * GIB


# --- compiling ------------------------------------------------------------------------------------


def _compile(config: ConfigDict, target: Topology, quickly: bool = False) -> Report | TooLarge:
  """Compiles the step of a config, with word of it on standard error."""
  parts = sections.read(config)
  with sections.user_errors():
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=target.devices)
  state = sections.layout(config, parts, mesh)
  with _patience(f"compiling the step for {target.name}"):
    try:
      return compilation.compile_step(
        parts.model,
        parts.optimizer,
        state,
        mesh,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        segments=config.data.segment_ids,
        z_loss=config.z_loss,
        accumulation=config.grad_accumulation,
        quickly=quickly,
      )
    except TooLarge as error:
      return error


@contextlib.contextmanager
def _patience(what: str) -> Iterator[None]:
  """Says on standard error what takes long, and every 15 seconds that it still goes on."""
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
  config: ConfigDict,
  target: Topology,
  estimates: advice.Estimates,
  budget: float,
  compiles: bool,
) -> None:
  """Settings that fit: the least change on this topology, and if that changes what is learnt, on
  the smallest larger one that does with less."""
  fits = _fits_compiled if compiles else None
  search = functools.partial(advice.settings, config, estimates=estimates, fits=fits)
  options = [search(target, budget, recipe=True)]
  if options[0] is None:
    options = [search(target, budget, recipe=False)]
    for name in topology.larger(target):
      size, memory = chips.num_chips(name.partition(":")[2]), _available(target)
      if advice.find(config, size, advice.fitting(estimates, size, memory), recipe=True) is None:
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
    print(f"This fits ({option.needed / GIB:.2f} GiB, {how}):")
    other = option.topology if option.topology != target.name else None
    print(f"  {_command(option.changes, other)}")
    if "optimizer.name" in option.changes:
      print(
        "  (Adafactor's --config.optimizer.learning_rate is relative to each tensor's size; 0.01 is"
        " usual)"
      )
  print()


def _fits_compiled(config: ConfigDict, target: Topology) -> float | None:
  """Bytes that the compiled step needs of each device, None if it does not fit."""
  report = _compile(config, target, quickly=True)
  if isinstance(report, Report) and report.memory.needed <= _available(target):
    return report.memory.needed
  return None


def _command(changes: Changes, other_topology: str | None) -> str:
  """This command with settings changed: those given before stay unless they are changed."""
  kept, skip = [], False
  for argument in sys.argv[1:]:
    name, equals, _ = argument.lstrip("-").partition("=")
    if skip:
      skip = False
    elif name.removeprefix("config.") in changes or (other_topology and name == "topology"):
      skip = not equals
    else:
      kept.append(argument)
  added = [f"--topology={other_topology}"] if other_topology else []
  added += [f"--config.{name}={value}" for name, value in changes.items()]
  return " ".join(["python -m gptneo_jax.plan", *kept, *added])


if __name__ == "__main__":
  main()
