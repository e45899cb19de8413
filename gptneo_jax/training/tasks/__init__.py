"""What a run learns: one module for each task, found by `config.task`.

A task is a module of this package with the functions of `Task`, and nothing else has to know of it:
the loop, the step, the planner and the checkpoints go through this face. `lm.py` is the example. To
add one, write NAME.py here; `--config.task=NAME` finds it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from gptneo_jax.data import DataConfig
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Loss


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
  """Batches without end: this host's rows of arrays whose first dimension is the batch.

  Attributes:
    epochs: passes over each source so far, by its name.
    wait_seconds: total time that the caller has waited in `next`.
  """

  @property
  def epochs(self) -> dict[str, float]: ...

  wait_seconds: float

  def get_state(self) -> dict[str, Any]:
    """Where the batches are, after the last one returned, as JSON can hold it.

    {"fingerprint": what must be equal in a run that continues, "streams": {name: state}}: the
    streams of all hosts are saved together (`data.merge_states`).
    """
    ...

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues after the batch that `state` followed. Raises data.DataError if it cannot."""
    ...

  def close(self) -> None: ...


class Evaluation(Protocol):
  """Measures parameters.

  Attributes:
    measures: False if there is nothing to measure, so that no evaluation is ever owed.
  """

  measures: bool

  def __call__(self, params: Any, stop: Callable[[], bool]) -> tuple[dict[str, float], str] | None:
    """Metrics, named `eval/…` (config.best_metric chooses the best checkpoint), and text to print.

    None if `stop`, called between batches (on every host equally often), returned True.
    """
    ...

  def at_end(self, params: Any, workdir: epath.Path) -> tuple[dict[str, float], str] | None:
    """What is left to measure of a run that is done: metrics `test/…`, and text to print.

    May write predictions into the run's folder. None if there is nothing.
    """
    ...


class Task(Protocol):
  """What a module of this package offers.

  A `run` is a `training.setup.Run`: configs, mesh, model, streams of this host. What a module
  offers may also be the methods of an object of it, TASK.

  Attributes:
    HEADS: values of `model.head` that it trains.
    POSITIONS_RESTART: whether a row may be longer than the model has positions, since these restart
      in it.
    PRETRAINS: whether it is what models are pre-trained with: the planner then shows what published
      runs of the size trained with.
  """

  HEADS: tuple[str, ...]
  POSITIONS_RESTART: bool
  PRETRAINS: bool

  def check_sources(self, data_config: DataConfig) -> None:
    """Raises data.DataError if there is nothing at the paths; reads nothing large."""
    ...

  def prepare(self, run: Any, tokenizer: Any) -> tuple[ConfigDict, Any]:
    """The config with what only the data say (labels, steps), and what becomes `run.prepared`.

    Called once, before anything else that takes a tokenizer. Raises data.DataError.
    """
    ...

  def describe_data(self, run: Any, tokenizer: Any) -> str:
    """A line about the amount of data, printed at the start."""
    ...

  def write_files(self, run: Any, tokenizer: Any, workdir: epath.Path) -> None:
    """Writes into the run's folder what the use of the model needs beside weights and config."""
    ...

  def open_batches(self, run: Any, tokenizer: Any) -> Batches:
    """The batches of this host, from the beginning. Raises data.DataError."""
    ...

  def batch_shapes(self, run: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a global batch: what the step is compiled for."""
    ...

  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    """What a step minimises; `module` is the model with the head of `model.head`."""
    ...

  def train_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
    """What metrics.jsonl says of a step, from the metrics of the loss; `loss` comes first."""
    ...

  def make_evaluation(self, run: Any, tokenizer: Any) -> Evaluation:
    """Opens what an evaluation needs. Raises UserError now for what would fail later."""
    ...


def find(name: str) -> Task:
  """The task of this name. Raises UserError, with those that there are, if there is none."""
  path = f"{__name__}.{name}"
  if name.isidentifier() and not name.startswith("_"):
    try:
      module = importlib.import_module(path)
      return cast(Task, getattr(module, "TASK", module))
    except ModuleNotFoundError as error:
      if error.name != path:  # something that the task imports
        raise
  there = names()
  raise UserError(
    f"task is {name!r}{did_you_mean(name, there)}; there is {', '.join(map(repr, there))}"
  )


def names() -> list[str]:
  return sorted(module.name for module in pkgutil.iter_modules(__path__))
