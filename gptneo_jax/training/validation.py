"""Evaluation within a training run: validation documents, baselines for them, a sample of text."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError, first_line
from gptneo_jax.evals import perplexity
from gptneo_jax.generation.decode import generate_ids
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model_io import Weights
from gptneo_jax.steps import make_eval_step, place_batch
from gptneo_jax.training import multihost

_PROMPT_CHARACTERS = 200  # of a document, before the sample of text
_PROMPT_DOCUMENTS = 100  # among which the first that is not blank is taken


class _Interrupted(Exception):
  """The run is to stop; what was measured so far is dropped."""


class _Stoppable(LanguageModel):
  """A model that ends the tasks it is measured by between two batches, which ask for its
  parameters."""

  stop: Callable[[], bool] = staticmethod(lambda: False)

  @property
  def params(self) -> Any:
    if self.stop():
      raise _Interrupted
    return super().params

  @params.setter
  def params(self, params: Any) -> None:
    self._params = params


class Validation:
  """What a run measures of its parameters: validation documents, tasks, and a sample of text.

  Attributes:
    measures: False if there are neither documents held out nor tasks.
  """

  def __init__(
    self,
    config: ConfigDict,
    data_config: data.DataConfig,
    model: Decoder,
    param_shardings: Any,
    mesh: Mesh,
    tokenizer: Any,
  ):
    """Draws the first batch and the sample's prompt: what is wrong with them is said now.

    Raises UserError for validation documents that cannot be read or hold no token, for a task that
    there is not, or with several hosts, on which no task runs.
    """
    _check_tasks(config)
    self._config, self._data_config = config, data_config
    self._model, self._mesh, self._tokenizer = model, mesh, tokenizer
    self._eval_step = make_eval_step(model, param_shardings, mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.eval.batch_size or config.batch_size // config.grad_accumulation
    self._rows = math.ceil(rows / ways) * ways
    self._own_rows = multihost.local_rows(mesh, self._rows)
    self._missing: set[str] = set()  # tasks that cannot be had, of which it was said
    self._batches = None
    if data.has_split(data_config, "validation"):
      self._batches = data.KeptBatches(
        lambda: data.EvaluationBatches(
          self._documents(), tokenizer, batch_size=self._rows, seq_len=config.seq_len
        )
      )
      if next(iter(self._batches), None) is None:
        raise UserError("the validation documents hold no token to score")
    self.measures = self._batches is not None or bool(config.eval.tasks)
    self._prompt, self._new_tokens = self._sample_prompt()

  def _documents(self) -> Iterator[data.Document]:
    return data.evaluation_documents(self._data_config, "validation", self._config.eval.documents)

  def __call__(
    self, params: Any, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], str] | None:
    """Metrics and the sample; None if `stop`, asked before each batch, said so.

    A sample that fails says why: it is there to be looked at, and ends no run.
    """
    results = {}
    try:
      if self._batches is not None:
        results = perplexity.evaluate(functools.partial(self._row_nll, params, stop), self._batches)
      if self._config.eval.tasks:
        results |= self._tasks(params, stop)
    except _Interrupted:
      return None
    try:
      return results, self._sample(params)
    except Exception as error:
      return results, f"(no sample of text: {first_line(error)})"

  def _row_nll(
    self, params: Any, stop: Callable[[], bool], batch: dict[str, np.ndarray]
  ) -> np.ndarray:
    if stop():
      raise _Interrupted
    own = {key: value[self._own_rows] for key, value in batch.items()}
    nll_BxT = self._eval_step(params, place_batch(own, self._mesh, self._rows)).nll_BxT
    return np.asarray(nll_BxT, np.float64).sum(-1)

  def _tasks(self, params: Any, stop: Callable[[], bool]) -> dict[str, float]:
    """`eval/TASK/METRIC` of each of the config's tasks that can be had; says once of the others
    why."""
    from gptneo_jax.evals import harness

    tasks, limit = self._config.eval.tasks, self._config.eval.task_items or None
    lm = _Stoppable(Weights(self._model.config, params), self._mesh)
    lm.stop, lm.tokenizer = stop, self._tokenizer
    found = harness.evaluate_tasks(lm, tasks, limit=limit)
    for task in found["missing"].keys() - self._missing:
      self._missing.add(task)
      tqdm.tqdm.write(f"{task} is not evaluated: {found['missing'][task]}", file=sys.stderr)
    return {
      f"eval/{task}/{metric}": value
      for task, metrics in found["results"].items()
      for metric, value in metrics.items()
    }

  def _sample_prompt(self) -> tuple[list[int], int]:
    """Ids of the sample's beginning, and how many to add: together at most seq_len."""
    config = self._config
    new_tokens = config.eval.sample_tokens
    if not new_tokens:
      return [], 0
    text = config.eval.sample_prompt
    if not text:
      documents = (
        self._documents()
        if self._batches is not None
        else data.evaluation_documents(self._data_config, "train", _PROMPT_DOCUMENTS)
      )
      text = next((d.text for d in documents if d.text.strip()), "")[:_PROMPT_CHARACTERS]
    ids = self._tokenizer(text, add_special_tokens=False).input_ids
    ids = ids or [data.end_of_text_id(self._tokenizer)]
    new_tokens = min(new_tokens, max(config.seq_len - len(ids), config.seq_len // 2))
    return ids[: config.seq_len - new_tokens], new_tokens

  def _sample(self, params: Any) -> str:
    """A beginning, and how the model goes on."""
    if not self._new_tokens:
      return ""
    ids = generate_ids(
      self._model,
      params,
      [self._prompt],
      max_new_tokens=self._new_tokens,
      end_id=data.end_of_text_id(self._tokenizer),
      temperature=0.7,
    )
    return self._tokenizer.decode(self._prompt) + " ⏵ " + self._tokenizer.decode(ids[0])


def _check_tasks(config: ConfigDict) -> None:
  if not config.eval.tasks:
    return
  if jax.process_count() > 1:
    raise UserError(
      "eval.tasks run on one host; evaluate the checkpoints of a run on several hosts"
    )
  from gptneo_jax.evals import harness

  harness.check(config.eval.tasks)


def baselines(config: ConfigDict, data_config: data.DataConfig) -> dict[str, float]:
  """Bits per byte, by name, that others need for the same validation documents."""
  if not config.eval.baselines or not data.has_split(data_config, "validation"):
    return {}

  def documents(split: str, limit: int = 0) -> Iterator[data.Document]:
    return data.evaluation_documents(data_config, split, limit)

  validation = list(documents("validation", config.eval.documents))
  return {
    "byte unigram": data.byte_unigram_bits_per_byte(documents("train"), validation),
    "gzip -9": data.gzip_bits_per_byte(validation),
  }


def report(step: int, results: dict[str, float], others: dict[str, float], sample: str) -> str:
  """Lines to print: loss, perplexity, bits per byte beside those of others, per subset; text."""
  text = f"step {step}:"
  if "eval/loss" in results:
    beside = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
    text += (
      f" validation loss {results['eval/loss']:.4f} nats per token, perplexity"
      f" {results['eval/perplexity']:.2f}, {results['eval/bits_per_byte']:.3f} bits per byte"
      + (f" ({beside})" if beside else "")
    )
  for key, value in results.items():
    if key.startswith("eval/bits_per_byte/"):
      text += f"\n  {key.removeprefix('eval/bits_per_byte/'):32} {value:.3f} bits per byte"
  for key, value in results.items():
    _, name, *metric = key.split("/")
    if metric and name not in ("loss", "perplexity", "bits_per_byte") and "_stderr" not in key:
      text += f"\n  {name:32} {value:.4f} {'/'.join(metric)}"
  if sample:
    text += "\n  | " + sample.replace("\n", "\n  | ")
  return text
