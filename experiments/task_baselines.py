"""What a fine-tuned model has to beat: the same records without a model.

`majority` says the most frequent label, tag or place of the right choice, the mean of a value, and
of a question that it has no answer. `words alone` is logistic regression on the words and pairs of
words of a text or a pair (scikit-learn, tf-idf), and for tags the most frequent one of each word.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gptneo_jax.errors import user_errors
from gptneo_jax.examples import find, label_predictions, labels, multiple_choice, sentences, splits
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.training import parse_config

MAJORITY, WORDS = NAMES = ("majority", "words alone")


def measure(config: ConfigDict) -> dict[str, dict[str, float]]:
  """Metrics of each on the test records of a config, or on its validation ones without any."""
  predict = {
    "sequence_classification": _labels,
    "sentence_pairs": _labels,
    "multiple_choice": _choices,
    "token_classification": _tags,
    "question_answering": _answers,
  }.get(config.task)
  if predict is None:
    return {}
  kind = find(config.task)
  with user_errors():
    data_config = parse_config.read(config).data
  found = splits.load_splits(data_config, kind.ROLES, kind.key)
  settings = config.examples.to_dict()
  unsettled = TaskSpec(
    config.task, config.seq_len, problem=config.examples.problem, settings=settings
  )
  spec = kind.settle(found.train, unsettled)
  tested = found.test or found.validation
  said = predict(found.train, tested, spec)
  metrics = {name: kind.metrics(predictions, tested, spec) for name, predictions in said.items()}
  # What is constant correlates with nothing.
  return {name: {k: x for k, x in row.items() if np.isfinite(x)} for name, row in metrics.items()}


Predictions = dict[str, list[dict[str, Any]]]  # of each baseline those of the tested records


def _answers(known: list[Record], tested: list[Record], spec: TaskSpec) -> Predictions:
  return {MAJORITY: [{"answer": "", "no_answer_score": 0.0, "n_best": []} for _ in tested]}


def _choices(known: list[Record], tested: list[Record], spec: TaskSpec) -> Predictions:
  places = collections.Counter(multiple_choice.right_choice(record, spec) for record in known)
  ((place, _),) = places.most_common(1)
  return {MAJORITY: [{"choice": place} for _ in tested]}


def _tags(known: list[Record], tested: list[Record], spec: TaskSpec) -> Predictions:
  of_word: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for one in sentences.read(known, spec.labels):
    for word, label in zip(one.words, one.labels or ()):
      of_word[word][label] += 1
  ((most_frequent, _),) = sum(of_word.values(), collections.Counter()).most_common(1)
  likely = {word: counts.most_common(1)[0][0] for word, counts in of_word.items()}
  words = [one.words for one in sentences.read(tested, spec.labels)]
  return {
    MAJORITY: [{"labels": [most_frequent] * len(row)} for row in words],
    WORDS: [{"labels": [likely.get(word, most_frequent) for word in row]} for row in words],
  }


def _labels(known: list[Record], tested: list[Record], spec: TaskSpec) -> Predictions:
  targets_NxC = np.array([labels.target(record, spec) for record in known])
  outputs = {
    MAJORITY: np.tile(targets_NxC.mean(0), (len(tested), 1)),
    WORDS: _regression(list(map(_text, known)), targets_NxC, list(map(_text, tested)), spec),
  }
  return {name: [_said(shares, spec) for shares in rows] for name, rows in outputs.items()}


def _text(record: Record) -> str:
  return record.fields.get("text") or f"{record.fields['first']} {record.fields['second']}"


def _regression(
  known: list[str], targets_NxC: np.ndarray, tested: list[str], spec: TaskSpec
) -> np.ndarray:
  """Probabilities of labels, or values, of the tested texts."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression, Ridge
  from sklearn.multiclass import OneVsRestClassifier

  words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
  inputs, asked = words.fit_transform(known), words.transform(tested)
  if spec.problem == labels.REGRESSION:
    return Ridge().fit(inputs, targets_NxC[:, 0]).predict(asked)[:, None]
  model = LogisticRegression(C=10.0, max_iter=2000)
  if spec.problem == labels.MULTI:
    return OneVsRestClassifier(model).fit(inputs, targets_NxC.astype(int)).predict_proba(asked)
  return model.fit(inputs, targets_NxC.argmax(-1)).predict_proba(asked)


def _said(shares_C: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
  """Shares as the outputs of a head would give them."""
  if spec.problem == labels.REGRESSION:
    return label_predictions.of_outputs(shares_C, spec)
  clipped_C = np.clip(shares_C, 1e-9, 1 - 1e-9)
  logits_C = np.log(clipped_C) - (np.log1p(-clipped_C) if spec.problem == labels.MULTI else 0)
  return label_predictions.of_outputs(logits_C, spec)
