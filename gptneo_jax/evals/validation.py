"""Evaluation within a training run: validation documents, baselines for them, a sample of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptneo_jax import data, hosts
from gptneo_jax.decode import generate_ids
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.evals import perplexity
from gptneo_jax.model import Decoder
from gptneo_jax.steps import make_eval_step, place_batch
from gptneo_jax.weights import Weights

_PROMPT_CHARACTERS = 200  # of a validation document, before the sample of text


def make_validation(
  config: ConfigDict,
  data_config: data.DataConfig,
  model: Decoder,
  param_shardings: Any,
  mesh: Mesh,
  tokenizer: Any,
) -> Callable[[Any], tuple[dict[str, float], str]]:
  """A function of the parameters: metrics of validation documents and tasks, a sample of text.

  Raises UserError for a task that there is not, or with several hosts, on which no task runs.
  """
  _check_tasks(config)
  eval_step = make_eval_step(model, param_shardings, mesh)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = math.ceil((config.eval.batch_size or config.batch_size) / ways) * ways
  local = hosts.local_rows(mesh, rows)

  def documents() -> Iterator[data.Document]:
    return data.evaluation_documents(data_config, "validation", config.eval.documents)

  def evaluate(params: Any) -> tuple[dict[str, float], str]:
    def row_nll(batch: dict[str, np.ndarray]) -> np.ndarray:
      own = {key: value[local] for key, value in batch.items()}
      nll_BxT = eval_step(params, place_batch(own, mesh, rows)).nll_BxT
      return np.asarray(nll_BxT, np.float64).sum(-1)

    batches = data.evaluation_batches(
      documents(), tokenizer, batch_size=rows, seq_len=config.seq_len
    )
    results = perplexity.evaluate(row_nll, batches)
    return results | _tasks(config, model, params, mesh, tokenizer), sample(params)

  def sample(params: Any) -> str:
    """A beginning, and how the model goes on."""
    if not config.eval.sample_tokens:
      return ""
    text = config.eval.sample_prompt or next(documents()).text[:_PROMPT_CHARACTERS]
    prompt = tokenizer(text).input_ids
    prompt = prompt[: config.seq_len - config.eval.sample_tokens]
    ids = generate_ids(
      model,
      params,
      [prompt],
      max_new_tokens=config.eval.sample_tokens,
      end_id=data.end_of_text_id(tokenizer),
      temperature=0.7,
    )
    return tokenizer.decode(prompt) + " ⏵ " + tokenizer.decode(ids[0])

  return evaluate


def _check_tasks(config: ConfigDict) -> None:
  if not config.eval.tasks:
    return
  if jax.process_count() > 1:
    raise UserError(
      "eval.tasks run on one host; evaluate the checkpoints of a run on several hosts"
    )
  from gptneo_jax.evals import harness

  harness.check(config.eval.tasks)


def _tasks(
  config: ConfigDict, model: Decoder, params: Any, mesh: Mesh, tokenizer: Any
) -> dict[str, float]:
  """`eval/TASK/METRIC` of each of the config's tasks that can be had."""
  if not config.eval.tasks:
    return {}
  from gptneo_jax.evals import harness

  lm = LanguageModel(Weights(model.config, params), mesh)
  lm.tokenizer = tokenizer
  found = harness.evaluate_tasks(lm, config.eval.tasks, limit=config.eval.task_items or None)
  return {
    f"eval/{task}/{metric}": value
    for task, metrics in found["results"].items()
    for metric, value in metrics.items()
  }


def baselines(config: ConfigDict, data_config: data.DataConfig) -> dict[str, float]:
  """Bits per byte, by name, that others need for the same validation documents."""
  if not config.eval.baselines:
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
  beside = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
  text = (
    f"step {step}: validation loss {results['eval/loss']:.4f} nats per token, perplexity"
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
