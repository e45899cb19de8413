"""Runs tasks of lm-evaluation-harness ("harness tasks") on a language model."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptneo_jax import engine
from gptneo_jax.errors import UserError, first_line
from gptneo_jax.evals import harness_globals, harness_tasks, local_tasks, provenance


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
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Evaluates harness tasks one after another; one that cannot be evaluated stops no other.

  Args:
    tasks: names of the harness, of YAML files in `include_path`, of `local_tasks`, or of a set,
      'gptneo_paper' or 'quick'.
    task_data: folder with the data of local tasks.
    num_fewshot: examples before each item; None: the task's default.
    limit: only the first `limit` items of each task.
    seed: of the choice of examples, and of sampling.
    cache: an SQLite file that keeps the model's answers, so that an interrupted run resumes. The
      model's fingerprint is added to its name: no model is given another's answers.
    stop: asked between batches; once it returns True, Stopped is raised.

  Returns:
    results: {task: {metric: value}}. METRIC_stderr is a standard error; the name of a filter of the
      harness follows a comma, unless it is 'none'.
    versions, num_fewshot, items (number of items evaluated): of each task.
    missing: {task: reason}.
    compiled_shapes: number of shapes that log-likelihoods compiled.
    columns: of gptneo_paper, dicts of column, task, metric, value (None if missing; accuracies are
      shares of 1) and published_task_name (None: GPT-Neo's own evaluator).
    samples: {task: items with answers}, with `log_samples`.

  Raises:
    UserError: an unknown task (with the nearest name), an argument out of range, no harness.
  """
  for name, value, least in (
    ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1), ("limit", limit, 1),
  ):  # fmt: skip
    if value is not None and value < least:
      raise UserError(f"{name} is {value}; it must be at least {least}")
  with _harness_required():
    from gptneo_jax.evals.lm_eval_model import LmEvalModel
  selection = harness_tasks.select(tasks, task_data)
  report: dict[str, Any] = {"results": {}, "versions": {}, "num_fewshot": {}}
  report |= {"items": {}, "missing": {}}
  samples: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    stack.enter_context(harness_globals.only_errors())
    stack.enter_context(harness_globals.no_progress_bars_in_files())
    model = LmEvalModel(lm, batch_size, seed, stop)
    manager = harness_tasks.make_manager([*selection.limits], include_path)
    cached_model = stack.enter_context(_cached(model, lm, cache))
    if not set(selection.limits) <= set(local_tasks.names()):
      stack.enter_context(harness_globals.offline_if_unreachable())
    for name, most in selection.limits.items():
      items = min((n for n in (most, limit) if n is not None), default=None)
      with harness_globals.seeded(seed):
        try:
          loaded = harness_tasks.load(name, manager, model, task_data, num_fewshot, seed)
        except Exception as error:  # a data set's own loader may raise anything
          report["missing"][name] = first_line(error)
          continue
        try:
          evaluate_loaded(cached_model, loaded, items, report, samples)
        except UserError as error:  # the model cannot do this task
          report["missing"][name] = str(error)
        except OverflowError:  # of an exponential
          report["missing"][name] = "a perplexity of it is larger than any number"
  report["columns"] = [
    {
      "column": column.column,
      "task": source.task,
      "metric": source.metric,
      "value": report["results"].get(source.task, {}).get(source.metric),
      "published_task_name": column.published,
    }
    for column, source in selection.columns
  ]
  report["compiled_shapes"] = model.compiled_shapes
  if log_samples:
    report["samples"] = samples
  return report


def check(tasks: Sequence[str]) -> None:
  """Raises UserError if the harness is not installed or does not know one of the tasks."""
  with _harness_required(), harness_globals.only_errors():
    harness_tasks.make_manager([*harness_tasks.select(tasks, None).limits], None)


def evaluate_loaded(
  model: Any, loaded: dict[str, Any], limit: int | None, report: dict, samples: dict
) -> None:
  """Evaluates a task, or the tasks of a group, and adds the figures to `report` and the items with
  answers to `samples`.

  model: an instance of the harness' LM class. loaded: as `harness_tasks.load` returns it.
  """
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
  """Of metrics that are means; for others the harness would start processes that bootstrap."""
  from lm_eval.api.metrics import mean, mean_stderr

  values: dict[str, list[float]] = {}
  for item in items:
    suffix = "" if item["filter"] == "none" else f",{item['filter']}"
    for metric in item["metrics"]:
      if task.aggregation().get(metric) is mean:
        values.setdefault(f"{metric}_stderr{suffix}", []).append(item[metric])
  return {name: float(mean_stderr(row)) for name, row in values.items() if len(row) > 1}


@contextlib.contextmanager
def _harness_required() -> Iterator[None]:
  """A UserError where the harness is not installed."""
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("lm_eval"):
      raise
    raise UserError("tasks need lm-evaluation-harness: pip install 'gptneo_jax[eval]'") from None


@contextlib.contextmanager
def _cached(model: Any, lm: engine.LanguageModel, cache: str | None) -> Iterator[Any]:
  """The model with its answers cached in a file whose name has the model's fingerprint."""
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
