"""From what a classifying head says to predictions, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptneo_jax.examples import labels
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec


def of_outputs(outputs_C: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
  """The prediction of one record, as JSON holds it.

  One label: `label` and `probabilities` of all. Several: `labels`, those of at least 0.5, and
  `probabilities`. A regression: `value`.
  """
  outputs_C = outputs_C.astype(np.float64)
  if spec.problem == labels.REGRESSION:
    return {"value": float(outputs_C[0])}
  if spec.problem == labels.MULTI:
    chance_C = 1 / (1 + np.exp(-outputs_C))
    chosen = [name for name, chance in zip(spec.labels, chance_C) if chance >= 0.5]
    return {"labels": chosen, "probabilities": dict(zip(spec.labels, chance_C.tolist()))}
  chance_C = softmax(outputs_C)
  label = spec.labels[int(chance_C.argmax())]
  return {"label": label, "probabilities": dict(zip(spec.labels, chance_C.tolist()))}


def softmax(scores: np.ndarray) -> np.ndarray:
  """Over the last axis, in float64."""
  shifted = np.exp(scores - scores.max(-1, keepdims=True))
  return shifted / shifted.sum(-1, keepdims=True)


def metrics(
  predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
) -> dict[str, float]:
  """accuracy and f1 (macro) of one label; f1 (micro), f1_macro and exact match of several; pearson,
  spearman and mean squared error of a regression."""
  if spec.problem == labels.REGRESSION:
    said = np.array([one["value"] for one in predictions])
    return regression_metrics(said, np.array([labels.number(record) for record in records]))
  place = {name: number for number, name in enumerate(spec.labels)}
  if spec.problem == labels.SINGLE:
    said = np.array([place[one["label"]] for one in predictions])
    true = np.array([labels.target(record, spec).argmax() for record in records])
    confusion = confusion_matrix(true, said, len(place))
    return {"accuracy": float((said == true).mean()), "f1": macro_f1(confusion)}
  said_NxC = np.zeros((len(records), len(place)), bool)
  for row, one in zip(said_NxC, predictions):
    row[[place[name] for name in one["labels"]]] = True
  true_NxC = np.array([labels.target(record, spec) > 0 for record in records])
  hits, claimed, there = (x.sum(0) for x in (said_NxC & true_NxC, said_NxC, true_NxC))
  return {
    "f1": _f1(hits.sum(), claimed.sum(), there.sum()),
    "f1_macro": float(np.mean([_f1(*counts) for counts in zip(hits, claimed, there)])),
    "exact_match": float((said_NxC == true_NxC).all(-1).mean()),
  }


def confusion_matrix(true_N: np.ndarray, said_N: np.ndarray, C: int) -> np.ndarray:
  """Counts, C x C: true label by row, predicted label by column."""
  return np.bincount(true_N * C + said_N, minlength=C * C).reshape(C, C)


def macro_f1(confusion_CxC: np.ndarray) -> float:
  """The mean F1 of the classes that occur, among the true labels or the predicted ones."""
  hits, there, claimed = confusion_CxC.diagonal(), confusion_CxC.sum(1), confusion_CxC.sum(0)
  return float(
    np.mean([_f1(*counts) for counts in zip(hits, claimed, there) if counts[1] + counts[2]])
  )


def regression_metrics(said_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
  """nan for a correlation with what does not vary."""
  from scipy import stats

  varies = len(true_N) > 1 and np.ptp(said_N) > 0 and np.ptp(true_N) > 0
  return {
    "pearson": float(stats.pearsonr(said_N, true_N)[0]) if varies else float("nan"),
    "spearman": float(stats.spearmanr(said_N, true_N)[0]) if varies else float("nan"),
    "mean_squared_error": float(np.square(said_N - true_N).mean()),
  }


def _f1(hits: float, claimed: float, there: float) -> float:
  return float(2 * hits / (claimed + there)) if claimed + there else 0.0
