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
    prepared, self._tokenizer = run.prepared, tokenizer
    self._language_model = trained_model.make(run, tokenizer)
    self._held_out = prepared.validation is not None
    asked = prepared.validation or prepared.train
    count = run.config.eval.answers if jax.process_count() == 1 else 0
    self._examples = asked.examples[:count]
    self._records = [asked.records[example.record] for example in self._examples]
    self.measures = self._held_out or bool(self._examples)

  def __call__(
    self, params: Any, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], str] | None:
    results, lines = {}, []
    if self._held_out:
      found = self.measure(params, self._run.prepared.validation, stop)
      if found is None:
        return None
      results = found[0] | {"perplexity": math.exp(min(found[0]["loss"], 700.0))}
    if self._examples:
      answered = self._answer(params, stop)
      if answered is None:
        return None
      metrics, lines = answered
      results |= metrics
    name = "eval" if self._held_out else "train"
    said = "\n  | ".join(
      [describe(results, "validation" if self._held_out else "training"), *lines]
    )
    return {f"{name}/{metric}": value for metric, value in results.items()}, said

  def _answer(
    self, params: Any, stop: Callable[[], bool]
  ) -> tuple[dict[str, float], list[str]] | None:
    """The metrics of the answers, and the first of them in lines beside what was expected."""
    spec = self._run.prepared.spec
    lm = self._language_model(params)
    prompts = [example.sequences[0][: example.extra].tolist() for example in self._examples]
    # One more than the answer has: one that goes on is another one.
    most = [example.length + 2 - example.extra for example in self._examples]
    texts = answers.greedy(lm, prompts, most, stop)
    if texts is None:
      return None
    given = instruction.predictions(texts, self._examples, spec)
    expected = conversations.read(self._records[0], labelled=True).turns[-1].answer
    prompt = self._tokenizer.decode(prompts[0])
    lines = [f"{prompt} ⏵ {given[0]['answer']}", f"expected: {expected}"]
    lines = [part for line in lines for part in line.split("\n")]
    return instruction.metrics(given, self._records, spec), lines


class InstructionTask(ExampleTask):
  """The task with the loss of a language model, and its own evaluation."""

  def __init__(self):
    heads: tuple[str, ...] = ("lm",)
    self.name, self.HEADS, self.kind = "instruction", heads, examples.find("instruction")

  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    return next_token_loss(module, config.z_loss, config.label_smoothing)

  def make_evaluation(self, run: Run, tokenizer: Any) -> Evaluation:
    return Evaluation(run, tokenizer)


TASK = InstructionTask()
