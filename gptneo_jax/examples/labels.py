"""Labels of classification: which there are, their distribution to learn, weights of classes."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptneo_jax.data import DataError
from gptneo_jax.errors import did_you_mean
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
PROBLEMS = (SINGLE, MULTI, REGRESSION)


def settle(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """The spec with the problem and the labels of the records, sorted. Raises DataError."""
  if spec.problem and spec.problem not in PROBLEMS:
    raise DataError(f"examples.problem is {spec.problem!r}; it is one of {', '.join(PROBLEMS)}")
  problem = spec.problem or _problem(records)
  if problem == REGRESSION:
    for record in records:
      number(record)
    return _weighted(records, spec.replace(problem=problem, labels=()))
  names = list(dict.fromkeys(name for record in records for name in names_of(record, problem)))
  labels = spec.labels or tuple(sorted(names, key=_numbers_first))
  if problem == SINGLE and len(labels) < 2:
    raise DataError(
      f"{records[0].location}: all {len(records)} records have the label {labels[0]!r}, so there is"
      " nothing to learn; is data.columns right?"
    )
  if problem == SINGLE and not spec.labels and len(labels) > max(100, len(records) // 2):
    raise DataError(
      f"{records[0].location}: {len(labels)} different labels in {len(records)} records, such as"
      f" {labels[0][:40]!r}; which column is the label? data.columns=text=…,label=…"
    )
  return _weighted(records, spec.replace(problem=problem, labels=labels))


def outputs(spec: TaskSpec) -> int:
  """What the head says: one number for each label, one for a regression."""
  return len(spec.labels) or 1


def target(record: Record, spec: TaskSpec) -> np.ndarray:
  """What the head is to say, float32: a distribution, bits or a value. Raises DataError."""
  if spec.problem == REGRESSION:
    return np.array([number(record)], np.float32)
  places = [index(name, record.location, spec) for name in names_of(record, spec.problem)]
  bits = np.zeros(len(spec.labels), np.float32)
  bits[places] = 1
  return bits


def smoothed(target_C: np.ndarray, spec: TaskSpec, amount: float) -> np.ndarray:
  """The distribution with a share `amount` of it given to all classes alike."""
  if spec.problem != SINGLE or not amount:
    return target_C
  return (1 - amount) * target_C + np.float32(amount / len(target_C))


def _weighted(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """The spec with the weight of each label, by examples.class_weights. Raises DataError."""
  if not spec.settings.get("class_weights"):
    return spec
  if spec.problem != SINGLE:
    raise DataError(f"examples.class_weights are for one label a record, and here: {spec.problem}")
  counts_C = np.sum([target(record, spec) for record in records], axis=0)
  return spec.replace(label_weights=class_weights(counts_C, spec))


def class_weights(counts_C: np.ndarray, spec: TaskSpec) -> tuple[float, ...]:
  """The weight of each label, by examples.class_weights; () where that is ''. Raises DataError.

  'balanced': examples / (labels · examples of the label), as scikit-learn has it; 'LABEL=WEIGHT,…':
  1 for those that are not named.
  """
  text = spec.settings.get("class_weights", "")
  if not text:
    return ()
  if text == "balanced":
    return tuple((counts_C.sum() / (len(counts_C) * np.maximum(counts_C, 1))).tolist())
  weights = [1.0] * len(spec.labels)
  for part in text.split(","):
    name, equals, value = part.rpartition("=")
    try:
      weight = float(value)
    except ValueError:
      weight = -1.0
    if not equals or name not in spec.labels or not 0 <= weight < float("inf"):
      raise DataError(
        f"examples.class_weights: {part!r} is not LABEL=WEIGHT; the labels are"
        f" {', '.join(spec.labels[:20])}"
      )
    weights[spec.labels.index(name)] = weight
  return tuple(weights)


def names_of(record: Record, problem: str) -> list[str]:
  """The labels of a record as texts: one, or of several labels any number. Raises DataError."""
  value = record.fields.get("label")
  if problem == MULTI:
    if value is None:
      return []
    if isinstance(value, str):
      return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
      return [_text(part, record) for part in value]
  if isinstance(value, list | tuple) or value is None or value == "":
    what = "no label" if value is None or value == "" else f"a list of labels, {value!r}"
    raise DataError(f"{record.location}: {what}; examples.problem={MULTI} takes any number")
  return [_text(value, record)]


def number(record: Record) -> float:
  """The value of a regression. Raises DataError."""
  value = record.fields.get("label")
  try:
    found = float(value)  # type: ignore[arg-type]
  except (TypeError, ValueError):
    found = float("nan")
  if not np.isfinite(found):
    raise DataError(f"{record.location}: the label {value!r} is no number, as a regression needs")
  return found


def index(name: str, location: str, spec: TaskSpec) -> int:
  """The place of a label among those of the spec. Raises DataError."""
  try:
    return spec.labels.index(name)
  except ValueError:
    raise DataError(
      f"{location}: the label {name!r} is none of the {len(spec.labels)} that training"
      f" knows{did_you_mean(name, spec.labels)}: {', '.join(spec.labels[:20])}"
    ) from None


def _problem(records: Sequence[Record]) -> str:
  """Lists are several labels, fractions a regression, all else one label."""
  values = [record.fields.get("label") for record in records]
  if any(isinstance(value, list | tuple) for value in values):
    return MULTI
  if any(_is_fraction(value) for value in values) and all(_is_number(value) for value in values):
    return REGRESSION
  return SINGLE


def _is_number(value: Any) -> bool:
  if isinstance(value, str):
    try:
      float(value)
    except ValueError:
      return False
    return True
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_fraction(value: Any) -> bool:
  return isinstance(value, float) or (isinstance(value, str) and "." in value and _is_number(value))


def _text(value: Any, record: Record) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, str | int):
    return str(value).strip()
  raise DataError(f"{record.location}: the label is {value!r}, neither a text nor a whole number")


def _numbers_first(name: str) -> tuple[bool, int, str]:
  return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
