"""Harness tasks by name: the harness' own, those of a user's YAML files, local ones, and sets."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.evals import local_tasks, task_sets
from gptneo_jax.evals.task_sets import Column, TaskMetric


class Selection(NamedTuple):
  """limits: the tasks to evaluate, each with its largest number of items (None: all).

  columns: those of the published table, if it is asked for, each with what fills it.
  """

  limits: dict[str, int | None]
  columns: list[tuple[Column, TaskMetric]]


def select(names: Sequence[str], task_data: str | None) -> Selection:
  """Expands the names of sets. Raises UserError if there is no name."""
  limits: dict[str, int | None] = {}
  columns: list[tuple[Column, TaskMetric]] = []
  for name in names:
    if name == task_sets.PAPER:
      columns = [(column, _source(column, task_data)) for column in task_sets.paper_columns()]
      limits |= dict.fromkeys(source.task for _, source in columns)
    elif name == task_sets.QUICK:
      limits = {**task_sets.quick_limits(), **limits}
    else:
      limits[name] = None
  if not limits:
    raise UserError("no task is named; for example: quick, gptneo_paper, lambada_openai")
  return Selection(limits, columns)


def _source(column: Column, task_data: str | None) -> TaskMetric:
  """The task on local data where there is some, else the harness' own."""
  local = column.local
  if local and (column.hub is None or local_tasks.find_file(local.task, task_data)):
    return local
  assert column.hub is not None
  return column.hub


def make_manager(names: Sequence[str], include_path: str | None) -> Any:
  """A TaskManager that knows the tasks. Raises UserError for an unknown name.

  The harness has 14,000 task files, which take a while to index: first only the folders are indexed
  whose names suggest that they hold the tasks.
  """
  from lm_eval import tasks as lm_eval_tasks

  if include_path is not None and not os.path.isdir(include_path):
    raise UserError(f"include_path {include_path!r}: no such folder")
  own: list[str | pathlib.Path] = [] if include_path is None else [os.path.abspath(include_path)]
  theirs = pathlib.Path(lm_eval_tasks.__file__).parent
  local = local_tasks.names()
  folders = {
    str(theirs / folder)
    for name in names
    if name not in local
    for folder in (name, name.split("_")[0])
    if folder and (theirs / folder).is_dir()
  }
  manager = lm_eval_tasks.TaskManager(include_path=[*sorted(folders), *own], include_defaults=False)
  if all(name in local or name in manager.task_index for name in names):
    return manager
  print("indexing the tasks of lm-evaluation-harness", file=sys.stderr)
  manager = lm_eval_tasks.TaskManager(include_path=own)
  for name in names:
    if name not in local and name not in manager.task_index:
      known = [task_sets.PAPER, task_sets.QUICK, *local, *manager.all_tasks]
      raise UserError(f"there is no task {name!r}{did_you_mean(name, known)}")
  return manager


def load(
  name: str, manager: Any, model: Any, task_data: str | None, num_fewshot: int | None, seed: int
) -> dict[str, Any]:
  """The task, or the tasks of a group, with few-shot examples set, as `TaskManager.load` returns
  them. Raises what the loading of its data raises."""
  spec: Any = name
  if name in local_tasks.names():
    spec = local_tasks.config(name, task_data, model.tokenizer, model.max_length)
  loaded = manager.load([spec])
  for task in loaded["tasks"].values():
    fixed = task.get_config("num_fewshot")
    # As in the harness: a task whose config says 0 has none.
    if num_fewshot is not None and fixed != 0:
      task.set_config(key="num_fewshot", value=num_fewshot)
    elif fixed is None:
      task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
  return loaded
