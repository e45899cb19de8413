"""Tasks of lm-evaluation-harness for a model of ours, by name or in sets, offline where data is."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptneo_jax import engine
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.evals import local_tasks, provenance, task_sets

_SECONDS = 5  # to reach the hub


def evaluate_tasks(
  lm: engine.LanguageModel,
  tasks: Sequence[str],
  *,
  include_path: str | None = None,
  task_data: str | None = None,
  num_fewshot: int | None = None,
  batch_size: int = 8,
  limit: int | None = None,
  log_samples: bool = False,
  seed: int = 0,
  cache: str | None = None,
) -> dict[str, Any]:
  """Evaluates tasks, one after another; what cannot be had stops none of the others.

  Args:
    tasks: names: of the harness, of YAML files in `include_path`, of `local_tasks`, or of a set,
      'gptneo_paper' or 'quick'.
    task_data: folder with data for local tasks.
    num_fewshot: examples before each item; None: as the task says.
    limit: items of each task at most, the first ones.
    seed: of the choice of examples, and of sampling.
    cache: a file (sqlite) in which answers are kept, so that a run goes on where it was stopped.
      The model's fingerprint is put into its name: no model is given another's answers.

  Returns:
    results: {task: {metric: value}}; _stderr behind a metric's name is its standard error, and a
      filter of the harness' stands behind a comma where it is not 'none'.
    versions, num_fewshot, items (how many were asked): of each task. missing: {task: reason}.
    compiled_shapes: programs that log-likelihoods needed.
    columns: of gptneo_paper, dicts of column, task, metric, value (None if missing; accuracies are
      shares of 1) and published_task_name (None: GPT-Neo's own evaluator).
    samples: {task: items with answers}, if asked for.

  Raises:
    UserError: a task of no such name (with the nearest), numbers out of range, no harness.
  """
  for name, value, least in (
    ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1), ("limit", limit, 1),
  ):  # fmt: skip
    if value is not None and value < least:
      raise UserError(f"{name} is {value}; it must be at least {least}")
  try:
    from gptneo_jax.evals import adapter
  except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("lm_eval"):
      raise
    raise UserError("tasks need lm-evaluation-harness: pip install 'gptneo_jax[eval]'") from None
  wanted, choices = _expanded(tasks, task_data)
  with _quiet(), _no_bars_in_files():
    model = adapter.HarnessModel(lm, batch_size, seed)
    manager = _manager(wanted, include_path)
    report: dict[str, Any] = {"results": {}, "versions": {}, "num_fewshot": {}}
    report |= {"items": {}, "missing": {}}
    samples: dict[str, Any] = {}
    with _cached(model, lm, cache) as answering, _offline_if_unreachable(wanted):
      for name, most in wanted.items():
        most = min((n for n in (most, limit) if n is not None), default=None)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (what tasks draw from)
        try:
          loaded = _load(name, manager, model, task_data, num_fewshot, seed)
        except Exception as error:  # whatever a data set's own loader raises
          report["missing"][name] = _first_line(error)
          continue
        try:
          _evaluate(answering, loaded, most, report, samples)
        except UserError as error:  # the model cannot do this task
          report["missing"][name] = str(error)
        except OverflowError:  # of an exponential
          report["missing"][name] = "a perplexity of it is larger than any number"
  report["columns"] = [_row(column, choice, report["results"]) for column, choice in choices]
  report["compiled_shapes"] = model.compiled_shapes
  if log_samples:
    report["samples"] = samples
  return report


def check(tasks: Sequence[str]) -> None:
  """Raises UserError if there is no harness, or no task of one of the names."""
  try:
    with _quiet():
      _manager(_expanded(tasks, None)[0], None)
  except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("lm_eval"):
      raise
    raise UserError("tasks need lm-evaluation-harness: pip install 'gptneo_jax[eval]'") from None


# --- which tasks ----------------------------------------------------------------------------------


def _expanded(
  tasks: Sequence[str], task_data: str | None
) -> tuple[dict[str, int | None], list[tuple[task_sets.Column, task_sets.Choice]]]:
  """Tasks with how many items of each are taken (None: all), and the paper's columns if asked for,
  each with the task that is to fill it."""
  wanted: dict[str, int | None] = {}
  columns: list[tuple[task_sets.Column, task_sets.Choice]] = []
  for name in tasks:
    if name == task_sets.PAPER:
      columns = [(column, _choice(column, task_data)) for column in task_sets.paper_columns()]
      wanted |= dict.fromkeys(choice.task for _, choice in columns)
    elif name == task_sets.QUICK:
      wanted = {**task_sets.quick_limits(), **wanted}
    else:
      wanted[name] = None
  if not wanted:
    raise UserError("no task is named; for example: quick, gptneo_paper, lambada_openai")
  return wanted, columns


def _choice(column: task_sets.Column, task_data: str | None) -> task_sets.Choice:
  local = column.local
  if local and (column.hub is None or local_tasks.find_file(local.task, task_data)):
    return local
  assert column.hub is not None
  return column.hub


def _row(
  column: task_sets.Column, choice: task_sets.Choice, results: dict[str, dict[str, float]]
) -> dict[str, Any]:
  return {
    "column": column.column,
    "task": choice.task,
    "metric": choice.metric,
    "value": results.get(choice.task, {}).get(choice.metric),
    "published_task_name": column.published,
  }


def _manager(wanted: dict[str, int | None], include_path: str | None) -> Any:
  """A TaskManager that knows the tasks. Raises UserError for a name that nobody knows.

  To look through all of the harness' 14,000 files takes a while: first come the folders that by
  their names should hold the tasks.
  """
  from lm_eval import tasks as harness_tasks

  if include_path is not None and not os.path.isdir(include_path):
    raise UserError(f"include_path {include_path!r}: no such folder")
  own: list[str | pathlib.Path] = [] if include_path is None else [os.path.abspath(include_path)]
  theirs = pathlib.Path(harness_tasks.__file__).parent
  known = local_tasks.names()
  folders = {
    str(theirs / folder)
    for name in wanted
    if name not in known
    for folder in (name, name.split("_")[0])
    if folder and (theirs / folder).is_dir()
  }
  manager = harness_tasks.TaskManager(include_path=[*sorted(folders), *own], include_defaults=False)
  if all(name in known or name in manager.task_index for name in wanted):
    return manager
  print("looking through the tasks of lm-evaluation-harness", file=sys.stderr)
  manager = harness_tasks.TaskManager(include_path=own)
  for name in wanted:
    if name not in known and name not in manager.task_index:
      names = [task_sets.PAPER, task_sets.QUICK, *known, *manager.all_tasks]
      raise UserError(f"there is no task {name!r}{did_you_mean(name, names)}")
  return manager


def _load(
  name: str, manager: Any, model: Any, task_data: str | None, num_fewshot: int | None, seed: int
) -> dict[str, Any]:
  """The task, or the tasks of a group, with examples set. Raises what its data set raises."""
  spec: Any = name
  if name in local_tasks.names():
    spec = local_tasks.config(name, task_data, model.tokenizer, model.max_length)
  loaded = manager.load([spec])
  for task in loaded["tasks"].values():
    fixed = task.get_config("num_fewshot")
    # As in the harness: a task that says 0 has none.
    if num_fewshot is not None and fixed != 0:
      task.set_config(key="num_fewshot", value=num_fewshot)
    elif fixed is None:
      task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
  return loaded


# --- evaluation -----------------------------------------------------------------------------------


def _evaluate(
  model: Any, loaded: dict[str, Any], limit: int | None, report: dict, samples: dict
) -> None:
  """Evaluates a task, or those of a group, into the report."""
  from lm_eval.evaluator import evaluate

  found = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
  for name, values in {**found["results"], **found.get("groups", {})}.items():
    report["results"][name] = {
      key.removesuffix(",none"): float(value)
      for key, value in values.items()
      if "," in key and isinstance(value, int | float | np.number)
    }
  for name, task in loaded["tasks"].items():
    report["results"][name] |= _standard_errors(task, found["samples"][name])
    report["versions"][name] = found["versions"][name]
    report["num_fewshot"][name] = found["n-shot"][name]
    report["items"][name] = found["n-samples"][name]["effective"]
  samples |= found["samples"]


def _standard_errors(task: Any, items: list[dict[str, Any]]) -> dict[str, float]:
  """Of the metrics that are means; the harness would start processes to bootstrap the others."""
  from lm_eval.api.metrics import mean, mean_stderr

  values: dict[str, list[float]] = {}
  for item in items:
    suffix = "" if item["filter"] == "none" else f",{item['filter']}"
    for metric in item["metrics"]:
      if task.aggregation().get(metric) is mean:
        values.setdefault(f"{metric}_stderr{suffix}", []).append(item[metric])
  return {name: float(mean_stderr(row)) for name, row in values.items() if len(row) > 1}


@contextlib.contextmanager
def _cached(model: Any, lm: engine.LanguageModel, cache: str | None) -> Iterator[Any]:
  """The model, its answers kept in a file that carries its fingerprint."""
  if cache is None:
    yield model
    return
  from lm_eval.api.model import CachingLM

  path = pathlib.Path(cache).expanduser()
  name = f"{path.stem}-{provenance.of_model(lm)}{path.suffix or '.db'}"
  try:
    caching = CachingLM(model, str(path.absolute().with_name(name)))
  except OSError as error:
    raise UserError(f"cache {cache!r}: cannot be written: {error.strerror}") from None
  try:
    yield caching
  finally:
    caching.dbdict.close()


# --- surroundings ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """The harness' errors only: it warns of every default that a task relies on."""
  logger = logging.getLogger("lm_eval")
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


@contextlib.contextmanager
def _no_bars_in_files() -> Iterator[None]:
  """Without a terminal no bars of the harness and of `datasets`: they are one long line there."""
  if sys.stderr.isatty():
    yield
    return
  import datasets
  from lm_eval.api import task

  bar, switched_off = task.tqdm, datasets.are_progress_bars_disabled()
  task.tqdm = functools.partial(bar, disable=True)  # pyrefly: ignore[bad-assignment]
  datasets.disable_progress_bars()
  try:
    yield
  finally:
    task.tqdm = bar
    if not switched_off:
      datasets.enable_progress_bars()


@contextlib.contextmanager
def _offline_if_unreachable(wanted: dict[str, int | None]) -> Iterator[None]:
  """Takes data sets from the cache alone where the hub is not reached.

  Else each of them would be tried for half a minute.
  """
  import datasets
  import huggingface_hub

  places = (datasets.config, huggingface_hub.constants)
  before = [place.HF_HUB_OFFLINE for place in places]
  needed = not set(wanted) <= set(local_tasks.names())
  if needed and not any(before) and not _reachable(huggingface_hub.constants.ENDPOINT):
    for place in places:
      place.HF_HUB_OFFLINE = True
  try:
    yield
  finally:
    for place, value in zip(places, before):
      place.HF_HUB_OFFLINE = value


def _reachable(address: str) -> bool:
  try:
    urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS)
  except urllib.error.HTTPError:
    return True  # it answered
  except OSError:
    return False
  return True


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
