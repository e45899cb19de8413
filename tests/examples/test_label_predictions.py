"""Predictions of labels, and their metrics against scikit-learn's."""

import numpy as np
import pytest

from gptneo_jax.examples import label_predictions, labels
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec

C = 4
NAMES = tuple("abcd")


def spec(problem: str) -> TaskSpec:
  names = () if problem == labels.REGRESSION else NAMES
  return TaskSpec("sequence_classification", 8, problem=problem, labels=names)


def records(values):
  return [Record({"label": value}, "file:1") for value in values]


def said(problem: str, N: int):
  outputs_NxC = np.random.default_rng(0).normal(size=(N, C if problem != labels.REGRESSION else 1))
  return [label_predictions.of_outputs(row, spec(problem)) for row in outputs_NxC]


def test_one_label():
  sklearn = pytest.importorskip("sklearn.metrics")
  true = [NAMES[n] for n in np.random.default_rng(1).integers(0, C - 1, 50)]  # d is never true
  predictions = said(labels.SINGLE, 50)
  found = label_predictions.metrics(predictions, records(true), spec(labels.SINGLE))
  names = [one["label"] for one in predictions]
  assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, names))
  assert found["f1"] == pytest.approx(sklearn.f1_score(true, names, average="macro"))
  for one in predictions:
    assert sum(one["probabilities"].values()) == pytest.approx(1)
    assert one["label"] == max(one["probabilities"], key=lambda n: one["probabilities"][n])


def test_several_labels():
  sklearn = pytest.importorskip("sklearn.metrics")
  bits = np.random.default_rng(1).random((40, C)) < 0.4
  true = [[name for name, on in zip(NAMES, row) if on] for row in bits]
  predictions = said(labels.MULTI, 40)
  found = label_predictions.metrics(predictions, records(true), spec(labels.MULTI))
  guessed = np.array([[name in one["labels"] for name in NAMES] for one in predictions])
  assert found["f1"] == pytest.approx(sklearn.f1_score(bits, guessed, average="micro"))
  assert found["f1_macro"] == pytest.approx(sklearn.f1_score(bits, guessed, average="macro"))
  assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(bits, guessed))


def test_a_regression():
  predictions = said(labels.REGRESSION, 30)
  values = np.array([one["value"] for one in predictions])
  same = label_predictions.metrics(predictions, records(2 * values + 1), spec(labels.REGRESSION))
  assert same["pearson"] == pytest.approx(1) and same["spearman"] == pytest.approx(1)
  assert same["mean_squared_error"] == pytest.approx(np.square(values + 1).mean())
  flat = label_predictions.metrics(predictions, records([1.0] * 30), spec(labels.REGRESSION))
  assert np.isnan(flat["pearson"]) and np.isfinite(flat["mean_squared_error"])


def test_a_confusion_matrix_has_true_labels_by_row():
  found = label_predictions.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
  assert found.tolist() == [[1, 1], [0, 1]]
