"""Evaluation on labelled examples: the loss, and what the predictions are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from gptneo_jax import sharding
from gptneo_jax.axes import round_up
from gptneo_jax.examples import Kind
from gptneo_jax.model import packed_outputs
from gptneo_jax.steps import Loss, make_eval_step, place_batch
from gptneo_jax.training import multihost
from gptneo_jax.training.prepared import Encoded
from gptneo_jax.training.setup import Run

PREDICTIONS = "predictions.jsonl"


class ExampleEvaluation:
  """Measures parameters on the validation examples; see `tasks.Evaluation`.

  Attributes:
    measures: False if there are none.
  """

  def __init__(self, run: Run, kind: Kind, loss: Loss):
    self._run, self._kind = run, kind
    self.measures = run.prepared.validation is not None
    config = run.config
    rows = config.eval.batch_size or config.batch_size // config.grad_accumulation
    self._rows = round_up(rows, sharding.batch_ways(run.mesh))
    self._own = multihost.local_rows(run.mesh, self._rows)
    module = run.module

    def measure(params, batch):
      """Sums of the losses and of their weights, and what the head says."""
      sums = loss.weight_sums(batch)
      _, losses = loss.share(params, batch, None, jax.tree.map(jnp.ones_like, sums))
      said = packed_outputs.of_batch(module, params, batch) if kind.OUTPUTS else ()
      return losses, sums, said

    self._measure = make_eval_step(measure, run.param_shardings, run.mesh)

  def __call__(
    self, params: Any, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], str] | None:
    if not self.measures:
      return {}, "no validation examples"
    measured = self.measure(params, self._run.prepared.validation, stop)
    if measured is None:
      return None
    results, _ = measured
    return {f"eval/{name}": value for name, value in results.items()}, describe(results)

  def at_end(self, params: Any, workdir: epath.Path) -> tuple[dict[str, float], str] | None:
    """Metrics of the test records, whose predictions go to FOLDER/predictions.jsonl."""
    if self._run.prepared.test is None:
      return None
    measured = self.measure(params, self._run.prepared.test)
    assert measured is not None
    results, predictions = measured
    if predictions and multihost.is_host0():
      lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in predictions)
      (workdir / PREDICTIONS).write_text("".join(lines))
    return {f"test/{name}": value for name, value in results.items()}, describe(results, "test")

  def measure(
    self, params: Any, encoded: Encoded, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """Metrics by name, and the prediction of each record; None if `stop` said so first."""
    kind, spec = self._kind, self._run.prepared.spec
    layout, packing = kind.layout(spec), encoded.packing
    rows = packing.in_order()
    losses: dict[str, float] = {}
    weights: dict[str, float] = {}
    said: list[np.ndarray] = []
    for first in range(0, len(rows), self._rows):
      if stop():
        return None
      taken: list[Sequence[int]] = [*rows[first : first + self._rows]]
      taken += [[]] * (self._rows - len(taken))
      batch = packing.batch([taken[row] for row in self._own], layout)
      found = self._measure(params, place_batch(batch, self._run.mesh, self._rows))
      batch_losses, batch_weights, outputs = jax.device_get(found)
      for name, value in batch_losses.items():
        losses[name] = losses.get(name, 0.0) + float(value)
        weights[name] = weights.get(name, 0.0) + float(batch_weights[name])
      if kind.OUTPUTS:
        said.extend(outputs)
    results = {name: value / max(weights[name], 1e-30) for name, value in losses.items()}
    if not kind.OUTPUTS:
      return results, []
    outputs = packed_outputs.of_examples(packing, said, kind.OUTPUTS)
    predictions = kind.predictions(outputs, encoded.examples, spec)
    kept = [encoded.records[n] for n in dict.fromkeys(e.record for e in encoded.examples)]
    return results | kind.metrics(predictions, kept, spec), predictions


def describe(results: dict[str, float], split: str = "validation") -> str:
  """One line, 'validation loss 0.0712, accuracy 0.9811, f1 0.9580', no parts such as 'f1/X'."""
  return f"{split} " + ", ".join(
    f"{name.replace('_', ' ')} {value:.4f}" for name, value in results.items() if "/" not in name
  )
