"""Trains a GPT-Neo or GPT-2 on text.

  python -m gptneo_jax.train --config configs/tiny.py
  python -m gptneo_jax.train --config configs/neo_1p3b.py --workdir runs/mine
  python -m gptneo_jax.train --config configs/neo_1p3b.py:runlocal      (shrunk, for a laptop)
  python -m gptneo_jax.train --config configs/tiny.py --config.steps=100 --config.model.num_layers=8

Any setting of the config file can be given as --config.NAME=VALUE;
gptneo_jax/training/run_config.py lists them with their meaning. The folder --workdir holds the
checkpoints, config.json, the tokenizer and metrics.jsonl; started again on the same folder, the run
goes on where it stopped, bit for bit.

Ctrl-C, once, ends the step, saves and says how to go on; twice ends at once.

Exit status: 0 done; 1 a mistake or a failure, said in one line; 143 stopped by SIGTERM or SIGUSR1,
or 130 by Ctrl-C, with everything saved: start it again to go on.

From Python: `gptneo_jax.train.run(config, "runs/mine")`.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import sys
from typing import Any

import jax
import tqdm
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from gptneo_jax import data, model_io, sharding
from gptneo_jax.checkpoints.folder import run_folder, save_config
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.step_folders import latest_step
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.planning import advice
from gptneo_jax.state import TrainState, init_state
from gptneo_jax.steps import place_batch
from gptneo_jax.training import (
  config_file,
  fitting,
  memory_estimate,
  multihost,
  parse_config,
  run_record,
  run_tokenizer,
  validation,
)
from gptneo_jax.training.metrics import MetricWriter, Progress, check_wandb, peak_flops_per_second
from gptneo_jax.training.step_report import StepReports, Trace


def main() -> None:
  """The command."""
  config_flags.DEFINE_config_file("config", None, "FILE.py, or FILE.py:runlocal to shrink.")
  flags.DEFINE_string("workdir", None, "Folder of the run; else runs/NAME_OF_CONFIG.")
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if SLURM, GKE or TPU do not say it."
  )
  flags.DEFINE_integer("num_processes", None, "Number of processes in all.")
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
  config_file.run_with_config(_run_command)


def _run_command(config: ConfigDict) -> int:
  given = flags.FLAGS
  workdir = given.workdir or f"runs/{config_file.config_name()}"
  with multihost.joined(given.coordinator_address, given.num_processes, given.process_id):
    if jax.process_count() == 1:
      # Nothing is lost before the first step, and after it a second Ctrl-C is to end at once.
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run(config, workdir, config_path=config_file.config_path())


def run(config: ConfigDict, workdir: str, *, config_path: str = "") -> int:
  """Trains in the folder `workdir`, or goes on with the run that it holds.

  config: as the files in configs/ make it. config_path: its file, for advice about commands.
  Returns 0 when done, 143 or 130 when stopped by a signal or Ctrl-C with everything saved. Raises
  UserError.
  """
  with contextlib.ExitStack() as closing:  # a failure too ends with all that was saved on disk
    return _run(config, run_folder(workdir), config_path, closing)


def _run(
  config: ConfigDict, workdir: epath.Path, config_path: str, closing: contextlib.ExitStack
) -> int:
  # --- what is asked for, and whether it can run here -------------------------------------------
  parts = parse_config.read(config)
  check_wandb(config.wandb_project)
  mesh, abstract = _layout(config, parts)
  memory = min(multihost.gather_objects(memory_estimate.memory_bytes(jax.local_devices())))
  asked, config = config, fitting.apply(config, fitting.choose(config, mesh.size, memory))
  model_config, data_config, optimizer, learning_rate = parse_config.read(config)
  model = Decoder(model_config)
  warning = _check_needs(config, data_config, config_path)
  command = ["python", "-m", "gptneo_jax.train", *sys.argv[1:]] if config_path else []
  record = run_record.of(asked, data_config.num_streams, command)
  changed = run_record.changes(workdir, record, model_config)
  say = _say if multihost.is_first() else lambda _: None
  say(_summary(asked, config, model_config, mesh, abstract, workdir))
  for text in filter(None, (warning, parse_config.warmup_warning(config))):
    say(text)
  closing.enter_context(advice.when_out_of_memory(config, mesh.size, memory))

  # --- data -------------------------------------------------------------------------------------
  tokenizer, named = run_tokenizer.find(config, data_config, workdir)
  say(named)
  data.check_vocabulary(tokenizer, model_config.vocab_size)
  batches = data.TrainBatches(
    data_config,
    tokenizer,
    batch_size=config.batch_size,
    seq_len=config.seq_len,
    seed=config.seed,
    streams=multihost.local_streams(mesh, config.batch_size, data_config.num_streams),
  )
  closing.callback(batches.close)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  evaluate = validation.Validation(config, data_config, model, shardings.params, mesh, tokenizer)

  if multihost.is_first():
    say(data.amount_of_data(data_config, tokenizer, config.batch_size * (config.seq_len + 1)))
  peak_flops, _ = peak_flops_per_second(jax.local_devices()[0], model_config.dtype)  # no mesh yet

  # --- state: what this folder holds, else init_from, else fresh ----------------------------------
  closing.enter_context(jax.set_mesh(mesh))
  checkpoints = Checkpointer(str(workdir), keep_latest=config.keep_latest)
  closing.callback(checkpoints.close)
  restored = checkpoints.restore(
    abstract.params, _all_but_params(abstract), vocab_size=model_config.vocab_size
  )
  if restored:
    state = TrainState(params=restored.params, **restored.optimizer)
    try:
      batches.set_state(restored.data_state)
    except data.DataError as error:
      raise UserError(f"{workdir}: {error}. {run_record.start_anew(workdir)}") from None
    say("\n".join([f"going on from step {restored.step}", *changed]))
  else:
    if config.init_from:
      run_tokenizer.check_of_weights(tokenizer, config.init_from)
    state = init_state(model, optimizer, mesh, config.seed)
    if config.init_from:
      state = state.replace(params=model_io.start_from(config.init_from, model_config, mesh))
      say(f"weights from {config.init_from}")
  first_step = int(state.step)
  if multihost.is_first():
    save_config(workdir, model_config)
    run_record.write(workdir, record, changed, first_step)
  estimated = config
  with advice.when_out_of_memory(asked, mesh.size, memory):
    config, train_step = fitting.fit(
      asked, mesh.size, memory, lambda c: fitting.compile_step(c, mesh, abstract, memory)
    )
  if config != estimated:
    say(f"the compiler found no room for that; {_choice(asked, config, mesh)}")
  baselines = functools.cache(functools.partial(validation.baselines, config, data_config))

  # --- reports ----------------------------------------------------------------------------------
  progress = Progress(
    config.steps,
    tokens_per_step=config.batch_size * config.seq_len,
    first_step=first_step,
    every={"eval": config.eval_every, "checkpoint": config.checkpoint_every},
    enabled=multihost.is_first(),
  )
  closing.callback(progress.close)
  # The line of a step stands with its checkpoint too: it may not have come into the file.
  written = restored.metrics if restored else {}
  writer = MetricWriter(
    str(workdir),
    resume_step=first_step - bool(written) if restored else None,
    wandb_project=config.wandb_project or None,
    run=record,
    enabled=multihost.is_first(),
  )
  closing.callback(writer.close)

  def last_saved() -> int | None:
    checkpoints.wait()
    return latest_step(str(workdir))

  report = StepReports(
    config,
    model_config,
    learning_rate=learning_rate,
    batches=batches,
    progress=progress,
    peak_flops=peak_flops,
    last_saved=last_saved,
  )

  def save(step: int, line: dict[str, float]) -> None:
    with progress.section("checkpoint"):
      checkpoints.save(
        step,
        params=state.params,
        optimizer=_all_but_params(state),
        data_state=data.merge_states(multihost.gather_objects(batches.get_state())),
        metrics=line,
      )

  def evaluation(step: int) -> dict[str, float] | None:
    """What is measured at a step; None if the run is to stop first."""
    with progress.section("eval"):
      measured = evaluate(state.params, stop)
    if measured is None:
      return None
    results, sample = measured
    say(validation.report(step, results, baselines(), sample))
    return results

  stop = multihost.StopRequest()
  closing.callback(stop.close)
  trace = Trace(workdir, config.profile)
  closing.callback(trace.close)

  # --- what a run that was stopped or killed in an evaluation still owes --------------------------
  step, stopping, previous = first_step, False, None
  if restored:
    due = _due(step, config.eval_every) or step >= config.steps
    if due and evaluate.measures and not any(key.startswith("eval/") for key in written):
      results = evaluation(step)
      stopping = results is None
      if results:
        checkpoints.add_metrics(step, results)
        written = written | results
    if written:
      writer.write(step, written)

  # --- the loop: the report of a step is made while the next one runs -----------------------------
  report.begin()
  while step < config.steps and not stopping:
    step += 1
    trace.before(step)
    batch = place_batch(next(batches), mesh, config.batch_size)
    state, metrics = train_step(state, batch)
    if previous and (line := report(*previous)):
      writer.write(previous[0], line)
    previous = step, metrics, batches.epochs

    stopping, last = stop(), step == config.steps
    evaluates = not stopping and (last or _due(step, config.eval_every))
    saves = stopping or last or _due(step, config.checkpoint_every)
    if not (evaluates or saves):
      continue
    # From here on this step is waited for: nothing is saved before its loss is known to be finite.
    line, previous = report(*previous), None
    if saves:
      save(step, line)
    results: dict[str, float] | None = {}
    if evaluates:
      try:
        results = evaluation(step)
      except Exception:
        if not saves and jax.process_count() == 1:  # one of several hosts may be alone here
          save(step, line)
        raise
    if results is None:
      stopping, results = True, {}
      if not saves:
        save(step, line)
    elif results and saves:
      checkpoints.add_metrics(step, results)
    if line := line | results:
      writer.write(step, line)
    report.begin()

  checkpoints.wait()
  progress.close()
  if stopping:
    again = (
      f"python -m gptneo_jax.train {shlex.join(sys.argv[1:])}" if config_path else "the same run"
    )
    say(f"stopped by {stop.reason}, saved at step {step} in {workdir}; to go on: {again}")
    return stop.status
  say(f"done: step {step}, checkpoint in {workdir / str(step)}")
  return 0


def _layout(config: ConfigDict, parts: parse_config.Sections) -> tuple[Mesh, TrainState]:
  """The mesh, and the state as shapes on it.

  Raises UserError for what does not divide, and for an attention backend that cannot serve here.
  """
  with user_errors():
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    _attention_backends(config, parts.model)
  abstract = parse_config.layout(config, parts, mesh)
  multihost.local_streams(mesh, config.batch_size, parts.data.num_streams)
  return mesh, abstract


def _attention_backends(config: ConfigDict, model_config: ModelConfig) -> dict[str, str]:
  return memory_estimate.attention_backends(
    model_config, config.seq_len, segments=config.data.segment_ids
  )


def _check_needs(config: ConfigDict, data_config: data.DataConfig, config_path: str) -> str:
  """A warning with the figures if by estimate the memory for the run is not there, else ''.

  Raises UserError with the figures if the data is not there, or what no program can do without.
  """
  problems = []
  try:
    data.check_sources(data_config)
  except data.DataError as error:
    problems.append(f"data: {error}")
  devices, available = jax.device_count(), memory_estimate.available_bytes(jax.local_devices())
  needs = fitting.estimate(config, devices)
  figures = memory_estimate.needs_text(needs, available, devices)
  if memory_estimate.certain_bytes(needs) > available:
    problems.append(f"memory: {figures}")
  if problems:
    instead = ""
    if config_path:
      here = f"python -m gptneo_jax.train --config {config_path.partition(':')[0]}:runlocal"
      instead = f" This does run: {here}"
    raise UserError(
      f"{config_path or 'the config'} cannot run here. {'; '.join(problems)}.{instead}"
    )
  if memory_estimate.total(needs) <= available:
    return ""
  would_fit = advice.would_fit(config, devices, available)
  return f"this may run out of memory: by estimate {figures}. {would_fit}".rstrip()


def _say(text: str) -> None:
  """Prints a line above the progress bar, if there is one."""
  tqdm.tqdm.write(text)
  sys.stdout.flush()


def _summary(
  asked: ConfigDict,
  config: ConfigDict,
  model_config: ModelConfig,
  mesh: Mesh,
  abstract: TrainState,
  workdir: Any,
) -> str:
  size = memory_estimate.size_text(sharding.bytes_per_device(abstract))
  shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  backends = _attention_backends(config, model_config)
  attention = ", ".join(f"{kind} {backend}" for kind, backend in backends.items())
  return (
    f"{model_config.num_params():,} parameters on {mesh.size} {jax.devices()[0].device_kind}"
    f" device(s), mesh {shape}: {size} of weights and optimizer on each;"
    f" {_choice(asked, config, mesh)}; attention: {attention}; run in {workdir}"
  )


def _choice(asked: ConfigDict, config: ConfigDict, mesh: Mesh) -> str:
  """How the batch is taken and what is computed again, marked where `asked` left it open."""
  parts = config.grad_accumulation
  rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * parts)
  marks = [
    "" if asked_ == has else " (chosen)"
    for asked_, has in ((asked.grad_accumulation, parts), (asked.model.remat, config.model.remat))
  ]
  return (
    f"a batch in {parts} part(s){marks[0]} of {rows} row(s) on a device,"
    f" remat {config.model.remat}{marks[1]}"
  )


def _all_but_params(state: TrainState) -> dict[str, Any]:
  """What a checkpoint holds beside the parameters, which are loaded without it elsewhere."""
  return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


if __name__ == "__main__":
  main()
