"""A question and its choices, of which one is right; their number may vary.

Each choice is a sequence of its own: start, question, delimiter, choice, extract. The head gives
each a score, and the softmax is over the choices of the question.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptneo_jax.data import DataError, DocumentEncoder
from gptneo_jax.examples import delimited
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.label_predictions import softmax
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.sequence_classification import text_of
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.examples.too_long import TooLong

ROLES = (
  Role("question", ("query", "goal", "prompt", "context", "ctx", "sentence", "text")),
  Role(
    "choices",
    (
      "options",
      "endings",
      "answers",
      "A+B+C+D+E",
      "A+B+C+D",
      "sol1+sol2",
      "option1+option2",
      "ending0+ending1+ending2+ending3",
    ),
  ),
  Role(
    "answer", ("answerKey", "gold", "alternative", "label", "correct", "target"), needed="training"
  ),
)
OUTPUTS = "sequence"

_FIRST = "first_choice"  # in the settings: the number of the first choice, 0 or 1


def layout(spec: TaskSpec) -> dict[str, Column]:
  return {
    "pooled": Column("position", np.int32),
    "groups": Column("example", np.int32),
    "weights": Column("sequence", np.float32),  # of the right choice
  }


def key(record: Record) -> str:
  return str(record.fields["question"])


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return delimited.TOKENS


def settle(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """Whether numbers of choices count from 0 or from 1: from 1 if that many are there, and no 0."""
  numbers = []
  for record in records:
    texts, names = choices_of(record)
    answer = record.fields["answer"]
    if names is None and _is_number(answer) and str(answer).strip() not in texts:
      numbers.append((int(answer), len(texts), record))
  from_one = bool(numbers) and all(n >= 1 for n, _, _ in numbers)
  from_one = from_one and any(n == count for n, count, _ in numbers)
  spec = spec.replace(settings={**spec.settings, _FIRST: int(from_one)})
  for record in records:
    right_choice(record, spec)
  return spec


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  questions = encoder.encode([text_of(record, "question") for record in records])
  choices = [choices_of(record)[0] for record in records]
  encoded = iter(encoder.encode([text for texts in choices for text in texts]))
  examples, long = [], TooLong(spec)
  for number, (record, question, texts) in enumerate(zip(records, questions, choices)):
    answers = [next(encoded) for _ in texts]
    each = len(question) + max(map(len, answers)) + len(delimited.TOKENS)
    most = min(spec.max_tokens, (spec.row_tokens or spec.max_tokens) // len(answers))
    if not long.keeps(record.location, each, most=most):
      continue
    sequences = tuple(
      delimited.sequence(*delimited.cut(question, answer, most), spec) for answer in answers
    )
    values: dict[str, Any] = {"pooled": tuple(len(ids) - 1 for ids in sequences)}
    if labelled:
      right = right_choice(record, spec)
      values["weights"] = tuple(float(n == right) for n in range(len(sequences)))
    examples.append(
      Example(
        sequences, values=values, record=number, location=record.location, extra=choices_of(record)
      )
    )
  return long.finish(examples)


def predictions(
  outputs: Sequence[np.ndarray], examples: Sequence[Example], spec: TaskSpec
) -> list[dict[str, Any]]:
  """`choice`, counted from 0, its `text` and, where the choices have names, its `label`; and the
  `probabilities` of all in their order."""
  found = []
  for scores, example in zip(outputs, examples):
    texts, names = example.extra
    chance = softmax(scores[:, 0].astype(np.float64))
    choice = int(chance.argmax())
    one = {"choice": choice, "text": texts[choice], "probabilities": chance.tolist()}
    found.append(one if names is None else {**one, "label": names[choice]})
  return found


def metrics(
  predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
) -> dict[str, float]:
  hits = [one["choice"] == right_choice(r, spec) for one, r in zip(predictions, records)]
  return {"accuracy": float(np.mean(hits))}


def choices_of(record: Record) -> tuple[list[str], list[str] | None]:
  """The texts of the choices, and their names if they have any. Raises DataError.

  A list of texts; the hub's form of ARC, {text: […], label: […]}; or a list of {text, label}.
  """
  value = record.fields.get("choices")
  names: Any = None
  if isinstance(value, dict):
    names, value = value.get("label"), value.get("text")
  elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
    names, value = [one.get("label") for one in value], [one.get("text") for one in value]
  if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
    raise DataError(f"{record.location}: the choices are {value!r}, not a list of texts")
  if len(value) < 2:
    raise DataError(f"{record.location}: {len(value)} choice(s); there must be two at least")
  if names is not None and (len(names) != len(value) or None in names):
    raise DataError(f"{record.location}: {len(value)} choices, and their labels are {names!r}")
  return value, None if names is None else [str(name) for name in names]


def right_choice(record: Record, spec: TaskSpec) -> int:
  """The number of the right choice, from 0. Raises DataError.

  The answer is a name of a choice, the text of one, a letter from A, or a number (see `settle`).
  """
  texts, names = choices_of(record)
  answer = str(record.fields.get("answer")).strip()
  found = -1
  if names is not None and answer in names:
    found = names.index(answer)
  elif answer in (stripped := [text.strip() for text in texts]):
    found = stripped.index(answer)
  elif len(answer) == 1 and answer.upper() in string.ascii_uppercase:
    found = string.ascii_uppercase.index(answer.upper())
  elif _is_number(answer):
    found = int(answer) - spec.settings.get(_FIRST, 0)
  if not 0 <= found < len(texts):
    known = names or [*string.ascii_uppercase[: len(texts)]]
    raise DataError(
      f"{record.location}: the answer {answer!r} is none of the choices {json.dumps(known)}"
    )
  return found


def _is_number(value: Any) -> bool:
  return not isinstance(value, bool) and str(value).strip().isdecimal()
