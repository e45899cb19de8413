"""The state of a run as its folder has it: started, saved and restored, whatever the method.

A checkpoint of the full method holds all of the model, what does not learn too. One of LoRA holds
what learns: the base is in the folder once (checkpoints/adapters.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gptneo_jax import state as states
from gptneo_jax.checkpoints import adapters
from gptneo_jax.checkpoints.manager import Checkpointer, Restored
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.interop import peft_files
from gptneo_jax.model import lora
from gptneo_jax.model.methods import FULL
from gptneo_jax.model.parameters import abstract_params
from gptneo_jax.state import TrainState
from gptneo_jax.training import multihost, skipping
from gptneo_jax.training.setup import Run

_HISTORY = "history"  # among the data's state


def start(run: Run, workdir: epath.Path, params: Any | None) -> TrainState:
  """The state before the first step; the base of LoRA is written.

  params: of the model, to start from; None: random ones.
  """
  if run.method.lora is not None:
    if params is None:
      params = states.init_model(run.module, run.mesh, run.config.seed)
    adapters.save_base(workdir, run.model_config, params, run.method.lora)
  state = states.init_state(
    run.module, run.optimizer, run.mesh, run.config.seed, run.method, params
  )
  return state.replace(history=_history(run, {}))


def restore(
  run: Run, checkpoints: Checkpointer, workdir: epath.Path
) -> tuple[TrainState, Restored] | None:
  """The state of the newest checkpoint, and what was stored with it; None if there is none."""
  restored = checkpoints.restore(
    saved_params(run, run.state), all_but_params(run.state), vocab_size=run.model_config.vocab_size
  )
  if not restored:
    return None
  params = restored.params
  if run.method.lora is not None:
    params = base(run, workdir)
  parts = states.place_parts(run.module, run.method, run.mesh, run.config.seed, params)
  learned = restored.params if run.method.lora is not None else parts.learned
  history = _history(run, restored.data_state.get(_HISTORY, {}))
  state = TrainState(params=learned, frozen=parts.frozen, history=history, **restored.optimizer)
  return state, restored


def base(run: Run, workdir: epath.Path) -> Any:
  """The model that a run of LoRA started from."""
  abstract = abstract_params(run.module, run.mesh)
  vocab_size = run.model_config.vocab_size
  return restore_params(str(workdir / adapters.BASE), abstract, 0, vocab_size=vocab_size)


def saved_params(run: Run, state: TrainState) -> Any:
  """What a checkpoint holds of the model."""
  return state.params if run.method.lora is not None else state.model_params


def all_but_params(state: TrainState) -> dict[str, Any]:
  """What a checkpoint holds beside the parameters, which are loaded without it elsewhere."""
  return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def saved_history(state: TrainState) -> dict[str, Any]:
  """What a checkpoint's state of the data has of the guard's history (skipping.py)."""
  return {_HISTORY: skipping.history_as_json(state.history)}


def _history(run: Run, saved: Mapping[str, list[float]]) -> Any:
  """The history of the run's guard on its mesh; without what was saved, a new one."""
  history = skipping.history_from_json(run.state.history, saved)
  return jax.jit(lambda: history, out_shardings=run.shardings.history)()


def write_adapter(run: Run, workdir: epath.Path, state: TrainState) -> None:
  """Writes PEFT's two files of a run of LoRA, in place of those of an earlier step."""
  if run.method.lora is None:
    return
  gather = np.asarray
  if jax.process_count() > 1:
    gather = lambda leaf: multihost_utils.process_allgather(leaf, tiled=True)
  learned = jax.tree.map(gather, state.params)
  if not multihost.is_host0():
    return
  target = workdir / adapters.ADAPTER
  target.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as here:
    peft_files.write_adapter(
      here,
      run.model_config,
      adapters.adapter_of(learned, run.method.lora),
      base=run.config.init_from or str(workdir / adapters.BASE),
      dropout=run.method.lora.dropout,
    )
    for file in (peft_files.WEIGHTS_FILE, peft_files.CONFIG_FILE):
      written = target / f"{file}.part"  # renamed: a process killed here leaves the old file
      (epath.Path(here) / file).copy(written, overwrite=True)
      written.replace(target / file)


def merged(run: Run, workdir: epath.Path, state: TrainState) -> Any:
  """The model of a run of LoRA with its factors merged into the base as it was."""
  assert run.method.lora is not None
  abstract = abstract_params(run.module, run.mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  add = lambda params, learned: lora.merged(params, adapters.adapter_of(learned, run.method.lora))
  return jax.jit(add, out_shardings=shardings, donate_argnums=0)(base(run, workdir), state.params)


def loss_of_merged(
  run: Run, tokenizer: Any, workdir: epath.Path, state: TrainState, stop: Callable[[], bool]
) -> float | None:
  """The `eval/loss` of factors that learned over a quantized base, merged into the base as it was.

  That is another model than the one trained, and it is the one that the folder loads as. None where
  the base is not quantized, nothing is measured, or `stop` returned True.
  """
  if run.method.lora is None or not run.method.lora.base:
    return None
  abstract = abstract_params(run.module, run.mesh)
  plain = dataclasses.replace(run, method=FULL, state=run.state.replace(params=abstract, frozen={}))
  evaluation = run.task.make_evaluation(plain, tokenizer)
  measured = evaluation(merged(run, workdir, state), stop) if evaluation.measures else None
  return measured[0].get("eval/loss") if measured else None
