"""Evaluation of a language model in training: validation documents, harness tasks, sampled text."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from gptneo_jax import data, sharding
from gptneo_jax.axes import round_up
from gptneo_jax.errors import Stopped, UserError, first_line
from gptneo_jax.evals import perplexity
from gptneo_jax.model import next_token
from gptneo_jax.steps import make_eval_step, place_batch
from gptneo_jax.training import multihost, trained_model
from gptneo_jax.training.setup import Run

_PROMPT_CHARACTERS = 200  # of a document, before the sample of text
_PROMPT_DOCUMENTS = 100  # among which the first that is not blank is taken


class Validation:
  """Measures parameters: validation documents, the config's harness tasks, a sample of text.

  Attributes:
    measures: False if there are neither documents held out nor tasks.
  """

  def __init__(self, run: Run, tokenizer: Any):
    """Draws the first batch and the sample's prompt, so that what is wrong with them is said now.

    Raises UserError for validation documents that cannot be read or hold no token, for a task that
    does not exist, or for tasks with several hosts, on which none runs.
    """
    _check_tasks(run.config)
    self._run, self._mesh, self._tokenizer = run, run.mesh, tokenizer
    self._language_model = trained_model.make(run, tokenizer)
    self._predict = make_eval_step(
      functools.partial(next_token.predictions, run.module), run.param_shardings, run.mesh
    )
    config, ways = run.config, sharding.batch_ways(run.mesh)
    rows = config.eval.batch_size or config.batch_size // config.grad_accumulation
    self._rows = round_up(rows, ways)
    self._own_rows = multihost.local_rows(run.mesh, self._rows)
    self._missing: set[str] = set()  # tasks that cannot be had, of which it was said
    self._batches = None
    if data.has_split(run.data_config, "validation"):
      self._batches = data.KeptBatches(self._open_batches)
      if next(iter(self._batches), None) is None:
        raise UserError("the validation documents hold no token to score")
    self.measures = self._batches is not None or bool(config.eval.tasks)
    self._prompt, self._new_tokens = self._sample_prompt()

  def _documents(self) -> Iterator[data.Document]:
    documents = self._run.config.eval.documents
    return data.evaluation_documents(self._run.data_config, "validation", documents)

  def _open_batches(self) -> data.EvaluationBatches:
    return data.EvaluationBatches(
      self._documents(),
      self._tokenizer,
      batch_size=self._rows,
      seq_len=self._run.config.seq_len,
    )

  def __call__(
    self, params: Any, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], str] | None:
    """`eval/…` metrics, and lines to print with a sample of text; see `tasks.Evaluation`.

    A sample that fails says why and ends no run: it is only there to be looked at.
    """
    results = {}
    try:
      if self._batches is not None:
        results = perplexity.evaluate(functools.partial(self._nll, params, stop), self._batches)
      if self._run.config.eval.tasks:
        results |= self._tasks(params, stop)
    except Stopped:
      return None
    try:
      sample = self._sample(params)
    except Exception as error:
      sample = f"(no sample of text: {first_line(error)})"
    return results, format_results(results, self._baselines, sample)

  def at_end(self, params: Any, workdir: Any) -> None:
    """All is measured in the last evaluation."""

  def _nll(self, params: Any, stop: Callable[[], bool], batch: dict[str, np.ndarray]) -> jax.Array:
    """Negative log-likelihood of each token, B x T, without waiting for it. Raises Stopped."""
    if stop():
      raise Stopped
    own = {key: value[self._own_rows] for key, value in batch.items()}
    return self._predict(params, place_batch(own, self._mesh, self._rows)).nll_BxT

  def _tasks(self, params: Any, stop: Callable[[], bool]) -> dict[str, float]:
    """`eval/TASK/METRIC` of each of the config's tasks that can be had; says once of the others
    why not."""
    from gptneo_jax.evals import harness

    settings = self._run.config.eval
    found = harness.evaluate_tasks(
      self._language_model(params), settings.tasks, limit=settings.task_items or None, stop=stop
    )
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
    config = self._run.config
    new_tokens = config.eval.sample_tokens
    if not new_tokens:
      return [], 0
    text = config.eval.sample_prompt
    if not text:
      documents = (
        self._documents()
        if self._batches is not None
        else data.evaluation_documents(self._run.data_config, "train", _PROMPT_DOCUMENTS)
      )
      text = next((d.text for d in documents if d.text.strip()), "")[:_PROMPT_CHARACTERS]
    ids = self._tokenizer(text, add_special_tokens=False).input_ids
    ids = ids or [data.end_of_text_id(self._tokenizer)]
    new_tokens = min(new_tokens, max(config.seq_len - len(ids), config.seq_len // 2))
    return ids[: config.seq_len - new_tokens], new_tokens

  def _sample(self, params: Any) -> str:
    """A beginning, and how the model continues it."""
    if not self._new_tokens:
      return ""
    made = self._language_model(params).generate(
      [self._prompt], max_new_tokens=self._new_tokens, do_sample=True, temperature=0.7
    )
    assert made.texts is not None
    return self._tokenizer.decode(self._prompt) + " ⏵ " + made.texts[0]

  @functools.cached_property
  def _baselines(self) -> dict[str, float]:
    """Bits per byte, by name, that others need for the same validation documents."""
    config = self._run.config
    if not config.eval.baselines or self._batches is None:
      return {}
    validation = list(self._documents())
    train = data.evaluation_documents(self._run.data_config, "train")
    return {
      "byte unigram": data.byte_unigram_bits_per_byte(train, validation),
      "gzip -9": data.gzip_bits_per_byte(validation),
    }


def _check_tasks(config: ConfigDict) -> None:
  if not config.eval.tasks:
    return
  if jax.process_count() > 1:
    raise UserError(
      "eval.tasks run on one host; evaluate the checkpoints of a run on several hosts"
    )
  from gptneo_jax.evals import harness

  harness.check(config.eval.tasks)


def format_results(results: dict[str, float], baselines: dict[str, float], sample: str) -> str:
  """Lines to print: loss, perplexity, bits per byte beside the baselines', by subset; the text."""
  text = "no validation documents"
  if "eval/loss" in results:
    beside = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    text = (
      f"validation loss {results['eval/loss']:.4f} nats per token, perplexity"
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
