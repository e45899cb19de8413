"""Instructions and conversations: the next tokens of answers; see examples/instruction.py.

An evaluation measures `loss` and `perplexity` of the tokens that count, `token_accuracy` (the share
of them than which no other token is likelier), and `exact_match`: the share of the first
eval.answers prompts whose greedy answer is the expected one, word for word. Where nothing is held
out, these are prompts of the training examples and the figure is called `train/exact_match`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from gptneo_jax import examples
from gptneo_jax.examples import conversations, instruction
from gptneo_jax.generation import answers
from gptneo_jax.model import next_token
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Batch, Loss
from gptneo_jax.training import trained_model
from gptneo_jax.training.example_evaluation import ExampleEvaluation, describe
from gptneo_jax.training.example_task import ExampleTask
from gptneo_jax.training.prepared import Encoded
from gptneo_jax.training.setup import Run
from gptneo_jax.training.tasks.lm import next_token_loss


def measured(module: Decoder) -> Loss:
  """What an evaluation adds up over batches."""

  def weight_sums(batch: Batch) -> dict[str, jax.Array]:
    return dict.fromkeys(("loss", "token_accuracy"), next_token.weight_sum(batch))

  def share(params: Any, part: Batch, key: Any, weight_sums: dict[str, jax.Array]):
    found = next_token.predictions(module, params, part)
    sums = {"loss": found.nll_BxT.sum(), "token_accuracy": found.correct_BxT.sum()}
    shares = {name: value / weight_sums[name] for name, value in sums.items()}
    return shares["loss"], shares

  return Loss(weight_sums, share)


class Evaluation(ExampleEvaluation):
  """Measures the loss, and lets the model answer some prompts; see `tasks.Evaluation`."""

  def __init__(self, run: Run, tokenizer: Any):
    super().__init__(run, examples.find("instruction"), measured(run.module))
    self._tokenizer = tokenizer
    self._language_model = trained_model.make(run, tokenizer)
    self._held_out = self.measures
    self._answers = run.config.eval.answers
    self.measures = self._held_out or self._answers > 0

  def __call__(
    self, params: Any, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], str] | None:
    prepared = self._run.prepared
    asked = prepared.validation if self._held_out else prepared.train
    measure = self.measure if self._held_out else self.answer
    found = measure(params, asked, stop, most=self._answers)
    if found is None:
      return None
    results, predictions = found
    name, split = ("eval", "validation") if self._held_out else ("train", "training")
    lines = [describe(results, split)] if results else []
    if predictions:
      lines += self._sample(asked, predictions[0])
    metrics = {f"{name}/{metric}": value for metric, value in results.items()}
    return metrics, "\n  | ".join(lines)

  def measure(
    self,
    params: Any,
    encoded: Encoded,
    stop: Callable[[], bool] = lambda: False,
    *,
    most: int | None = None,
  ) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """Metrics by name, and the answers to the first `most` prompts, of which one is exact_match."""
    found = super().measure(params, encoded, stop)
    answered = found and self.answer(params, encoded, stop, most=most)
    if found is None or answered is None:
      return None
    perplexity = math.exp(min(found[0]["loss"], 700.0))
    return found[0] | {"perplexity": perplexity} | answered[0], answered[1]

  def answer(
    self, params: Any, encoded: Encoded, stop: Callable[[], bool], *, most: int | None
  ) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """exact_match, and the answers to the first prompts; none of several hosts generates."""
    asked = encoded.examples[: 0 if jax.process_count() > 1 else most]
    if not asked:
      return {}, []
    prompts = [example.sequences[0][: example.extra].tolist() for example in asked]
    # One more than the answer has: one that goes on is another one.
    longest = [example.length + 2 - example.extra for example in asked]
    texts = answers.greedy(self._language_model(params), prompts, longest, stop)
    if texts is None:
      return None
    spec, records = self._run.prepared.spec, [encoded.records[one.record] for one in asked]
    predictions = instruction.predictions(texts, asked, spec)
    return instruction.metrics(predictions, records, spec), predictions

  def _sample(self, encoded: Encoded, prediction: dict[str, Any]) -> list[str]:
    """The first prompt with the model's answer, in lines, beside what was expected."""
    first = encoded.examples[0]
    prompt = self._tokenizer.decode(first.sequences[0][: first.extra])
    read = conversations.read(encoded.records[first.record], labelled=True)
    text = f"{prompt} ⏵ {prediction['answer'].strip()}\nexpected: {read.turns[-1].answer}"
    return text.split("\n")


class InstructionTask(ExampleTask):
  """The task with the loss of a language model, and its own evaluation."""

  NAME, HEADS = "instruction", ("lm",)

  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    return next_token_loss(module, config.z_loss, config.label_smoothing)

  def make_evaluation(self, run: Run, tokenizer: Any) -> Evaluation:
    return Evaluation(run, tokenizer)


TASK = InstructionTask()
