"""Trains a GPT-Neo or GPT-2 on text.

  python -m gptneo_jax.train --config configs/tiny.py
  python -m gptneo_jax.train --config configs/neo_1p3b.py --workdir runs/mine
  python -m gptneo_jax.train --config configs/neo_1p3b.py:runlocal      (shrunk, for a laptop)
  python -m gptneo_jax.train --config configs/tiny.py --config.steps=100 --config.model.num_layers=8

Any setting of the config file can be given as --config.NAME=VALUE;
gptneo_jax/training/run_config.py lists them with their meaning. The folder --workdir holds the
checkpoints, config.json, the tokenizer and metrics.jsonl; started again on the same folder, the run
resumes where it stopped, bit for bit.

Ctrl-C, once, ends the step, saves and says how to resume; twice ends at once.

Exit status: 0 done; 1 a mistake or a failure, said in one line; 143 stopped by SIGTERM or SIGUSR1,
or 130 by Ctrl-C, with everything saved: start it again to resume.

From Python: `gptneo_jax.train.run(config, "runs/mine")`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from gptneo_jax import data, model_io
from gptneo_jax.checkpoints.folder import run_folder, save_config
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.step_folders import metrics_of
from gptneo_jax.errors import UserError
from gptneo_jax.planning import advice
from gptneo_jax.state import TrainState
from gptneo_jax.steps import place_batch
from gptneo_jax.training import (
  config_file,
  fitting,
  joining,
  memory_estimate,
  multihost,
  parse_config,
  run_record,
  run_state,
  run_tokenizer,
)
from gptneo_jax.training.adopt_model import adopt_model
from gptneo_jax.training.compiled_step import compile_step, fit
from gptneo_jax.training.machine_figures import peak_flops_per_second
from gptneo_jax.training.metrics import check_wandb
from gptneo_jax.training.progress import print_above
from gptneo_jax.training.saving import Saving
from gptneo_jax.training.setup import Run, setup_run
from gptneo_jax.training.step_report import StepReports
from gptneo_jax.training.summary import Summary
from gptneo_jax.training.tasks import Batches, Evaluation
from gptneo_jax.training.trace import Trace

_EVALUATED = "perf/eval_seconds"  # is among the metrics of each step that was evaluated


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
  with joining.joined(given.coordinator_address, given.num_processes, given.process_id):
    if jax.process_count() == 1:
      # Nothing is lost before the first step, and after it a second Ctrl-C must end at once.
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run(config, workdir, config_path=config_file.config_path())


def run(config: ConfigDict, workdir: str, *, config_path: str = "") -> int:
  """Trains in the folder `workdir`, or resumes the run that it holds.

  config: as the files in configs/ make it. config_path: its file, for advice about commands.
  Returns 0 when done, 143 or 130 when stopped by a signal or Ctrl-C with everything saved. Raises
  UserError.
  """
  with contextlib.ExitStack() as closing:  # a failure too leaves all that was saved on disk
    return _run(config, multihost.require_shared(run_folder(workdir)), config_path, closing)


def _run(
  config: ConfigDict, workdir: epath.Path, config_path: str, closing: contextlib.ExitStack
) -> int:
  # --- config and setup: what follows from the config, and whether it can run here ---------------
  config = adopt_model(config, workdir)
  run = setup_run(config)
  check_wandb(config.wandb_project)
  warning = _check_needs(run, config_path)
  command = ["python", "-m", "gptneo_jax.train", *sys.argv[1:]] if config_path else []
  record = run_record.of(run.asked, run.data_config.num_streams, command)
  changed = run_record.changes(workdir, record, run.model_config)
  say = print_above if multihost.is_host0() else lambda _: None
  say(f"{run.describe()}; run in {workdir}")
  if warning:
    say(warning)
  closing.enter_context(advice.when_out_of_memory(run.config, run.mesh.size, run.memory))

  # --- data ---------------------------------------------------------------------------------------
  tokenizer, named = run_tokenizer.find(config, run.data_config, workdir)
  say(named)
  data.check_vocabulary(tokenizer, run.model_config.vocab_size)
  settled, prepared = run.task.prepare(run, tokenizer)
  if settled is not run.asked:
    config, run = settled, setup_run(settled)
    run_record.changes(workdir, record, run.model_config)  # the labels may be others now
  run = dataclasses.replace(run, prepared=prepared)
  batches = closing.enter_context(contextlib.closing(run.task.open_batches(run, tokenizer)))
  evaluation = run.task.make_evaluation(run, tokenizer)
  if multihost.is_host0():
    say(run.task.describe_data(run, tokenizer))
  if config.epochs:
    say(f"{config.epochs:g} epoch(s) are {run.config.steps:,} steps")
  if warning := parse_config.warmup_warning(run.config):
    say(warning)

  # --- restore: what this folder holds, else init_from, else fresh --------------------------------
  # On one device, so before the mesh is set.
  peak_flops, _ = peak_flops_per_second(jax.local_devices()[0], run.model_config.dtype)
  closing.enter_context(jax.set_mesh(run.mesh))
  checkpoints = closing.enter_context(
    contextlib.closing(
      Checkpointer(
        str(workdir),
        keep_latest=run.config.keep_latest,
        keep_every_hours=run.config.keep_every_hours,
        best_metric=run.config.best_metric,
      )
    )
  )
  restored = _restore(run, checkpoints, batches, workdir)
  state, written, summed = restored or (_start(run, tokenizer, workdir, say), {}, {})
  step = int(state.step)
  record["hub"] = run_record.hub_commits(run.config)
  changed += run_record.moved(workdir, record) if restored else []
  if restored:
    say("\n".join([f"resuming from step {step}", *changed]))

  def write_files() -> None:
    save_config(workdir, run.model_config)
    run.task.write_files(run, tokenizer, workdir)
    run_record.write(workdir, record, changed, step)

  def write_anew() -> None:
    data.save_tokenizer(tokenizer, str(workdir))
    write_files()

  if multihost.is_host0():
    write_files()

  # --- step ---------------------------------------------------------------------------------------
  summary = Summary(run, summed)
  estimated = run
  with advice.when_out_of_memory(config, run.mesh.size, run.memory):
    run, train_step = fit(run, compile_step)
  if run.choice != estimated.choice:
    say(f"the compiler found no room for that; {run.describe_choice()}")
    evaluation = run.task.make_evaluation(run, tokenizer)  # its batches have rows of one part

  # --- what the loop writes to; an evaluation that a run stopped in still owes --------------------
  saving = Saving(
    run, workdir, checkpoints, batches=batches, summary=summary, write_files=write_anew, say=say
  )
  reports = StepReports(
    run,
    workdir,
    record,
    batches=batches,
    summary=summary,
    say=say,
    peak_flops=peak_flops,
    last_saved=saving.last_saved,
    first_step=step,
    # The line of a step is stored with its checkpoint too: it may not have reached the file.
    resume_step=step - bool(written) if restored else None,
  )
  closing.callback(reports.close)
  stop = closing.enter_context(contextlib.closing(multihost.StopRequest()))
  trace = closing.enter_context(contextlib.closing(Trace(workdir, config.profile, say)))
  save = functools.partial(saving, reports)
  evaluate = functools.partial(_evaluate, evaluation, stop, reports, say)

  stopping, previous, first = False, None, step
  if restored and evaluation.measures and _owes_evaluation(run.config, step, written):
    results = evaluate(step, state)
    stopping, first = results is None, -1
    if results:
      saving.add_metrics(step, results)
      written = written | results
  reports.write(step, written)
  if problem := summary.add_line(step, written):
    raise UserError(problem)

  # --- loop: the report of a step is made while the next one runs ---------------------------------
  reports.begin()
  while step < run.config.steps and not (stopping or summary.best.is_over):
    step += 1
    trace.before(step, previous)
    batch = place_batch(next(batches), run.mesh, config.batch_size)
    with jax.transfer_guard("disallow"):
      state, metrics = train_step(state, batch)
    if previous:
      reports.write(previous[0], reports(*previous))
    previous = step, metrics, batches.epochs

    stopping, last = stop(), step == run.config.steps
    evaluates = not stopping and (last or _due(step, run.config.eval_every))
    saves = stopping or last or _due(step, run.config.checkpoint_every) or saving.is_owed()
    if not (evaluates or saves):
      continue
    # From here on this step is waited for: nothing is saved before its loss is known to be finite.
    line, previous = reports(*previous), None
    if saves:
      save(step, state, line)
    results: dict[str, float] | None = {}
    if evaluates:
      try:
        results = evaluate(step, state)
      except Exception:
        if not saves and jax.process_count() == 1:  # one of several hosts may be alone here
          save(step, state, line)
        raise
    stopping, results = stopping or results is None, results or {}
    problem = summary.add_evaluation(step, results)
    if (stopping or problem or summary.best.is_over) and not saves:
      save(step, state, line)
      saves = True
    if results and saves:
      saving.add_metrics(step, results)
    written = line | results
    reports.write(step, written)
    if problem:
      raise UserError(f"{problem}. Step {step} is saved: the run resumes with another best_metric")
    reports.begin()

  saving.finish(lambda: save(step, state, written))
  reports.close()
  if stopping:
    again = (
      f"python -m gptneo_jax.train {shlex.join(sys.argv[1:])}" if config_path else "the same run"
    )
    say(f"stopped by {stop.reason}, saved at step {step} in {workdir}; to resume: {again}")
    return stop.status
  merged = run_state.loss_of_merged(run, tokenizer, workdir, state, stop) if step > first else None
  if merged is not None:
    summary.add_final({"eval/merged_loss": merged})
    trained = metrics_of(workdir / str(step)).get("eval/loss", math.nan)
    say(
      f"validation loss over the {config.lora.base} base {trained:.4f}; merged into the base as it"
      f" was, which is what {workdir} loads as, {merged:.4f}"
    )
  if step > first or not summary.is_written(workdir):
    if tested := evaluation.at_end(state.model_params, workdir):
      summary.add_final(tested[0])
      say(tested[1])
    if multihost.is_host0():
      say(summary.write(workdir, step, batches.epochs))
  early = f" of {run.config.steps}, {summary.best.describe()}" if step < run.config.steps else ""
  say(f"done: step {step}{early}, checkpoint in {workdir / str(step)}")
  return 0


# --- the state of a run ---------------------------------------------------------------------------


def _restore(
  run: Run, checkpoints: Checkpointer, batches: Batches, workdir: epath.Path
) -> tuple[TrainState, dict[str, float], dict[str, Any]] | None:
  """The state of the newest checkpoint, the metrics stored with it, and the state of the summary;
  None if there is none.

  `batches` continue after those that the checkpoint has seen. Raises UserError if they cannot.
  """
  found = run_state.restore(run, checkpoints, workdir)
  if not found:
    return None
  state, restored = found
  try:
    batches.set_state(restored.data_state)
  except data.DataError as error:
    raise UserError(f"{workdir}: {error}. {run_record.start_anew(workdir)}") from None
  return state, restored.metrics, restored.data_state.get("summary", {})


def _start(run: Run, tokenizer: Any, workdir: epath.Path, say: Callable[[str], None]) -> TrainState:
  """The state before the first step: random weights, or those of init_from."""
  init_from, params = run.config.init_from, None
  if init_from and not run.config.random_weights:
    run_tokenizer.check_of_weights(tokenizer, init_from)
    params = model_io.start_from(
      init_from, run.model_config, run.mesh, adapt=run.config.adopt_model, seed=run.config.seed
    )
    say(f"weights from {data.with_commit(init_from)}")
  return run_state.start(run, workdir, params)


def _evaluate(
  evaluation: Evaluation,
  stop: Callable[[], bool],
  reports: StepReports,
  say: Callable[[str], None],
  step: int,
  state: TrainState,
) -> dict[str, float] | None:
  """What is measured at a step, and how long that took; None if the run was asked to stop first."""
  start = time.perf_counter()
  with reports.section("eval"):
    measured = evaluation(state.model_params, stop)
  if measured is None:
    return None
  results, text = measured
  say(f"step {step}: {text}")
  return results | {_EVALUATED: time.perf_counter() - start} if results else {}


def _owes_evaluation(config: ConfigDict, step: int, written: dict[str, float]) -> bool:
  """Whether an evaluation was due at a step whose metrics hold none."""
  due = _due(step, config.eval_every) or step >= config.steps
  return due and not any(key.startswith("eval/") or key == _EVALUATED for key in written)


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


# --- before the start -----------------------------------------------------------------------------


def _check_needs(run: Run, config_path: str) -> str:
  """A warning with the figures if by estimate the memory for the run is not there, else ''.

  Raises UserError with the figures if the data is not there, or memory that no program can do
  without.
  """
  problems = []
  try:
    run.task.check_sources(run.data_config)
  except data.DataError as error:
    problems.append(f"data: {error}")
  devices, available = jax.device_count(), memory_estimate.available_bytes(jax.local_devices())
  needs = fitting.estimate(run.config, devices)
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
  would_fit = advice.would_fit(run.config, devices, available)
  return f"this may run out of memory: by estimate {figures}. {would_fit}".rstrip()


if __name__ == "__main__":
  main()
