"""A text and its label: one of several, any number of them, or a value (regression).

The head reads the last token of the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptneo_jax.data import DataError, DocumentEncoder
from gptneo_jax.examples import label_predictions, labels
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.examples.too_long import TooLong

TEXT = ("sentence", "message", "content", "document", "review", "sms", "comment")
LABEL = ("labels", "category", "class", "intent", "intents", "target", "score", "sentiment")

ROLES = (Role("text", TEXT), Role("label", LABEL, needed="some"))
OUTPUTS = "sequence"

settle = labels.settle


def layout(spec: TaskSpec) -> dict[str, Column]:
  return {
    "pooled": Column("position", np.int32),
    "labels": Column("sequence", np.float32, 0.0, (labels.outputs(spec),)),
    "weights": Column("sequence", np.float32),
  }


def key(record: Record) -> str:
  return str(record.fields["text"])


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return {}


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  texts = [text_of(record, "text") for record in records]
  examples, long = [], TooLong(spec)
  for number, (record, ids) in enumerate(zip(records, encoder.encode(texts))):
    if long.keeps(record.location, len(ids)):
      ids = ids[-spec.max_tokens :]
      if not len(ids):  # an empty text: there must be a token to read
        ids = np.array([encoder.end_of_text], np.int32)
      examples.append(
        Example((ids,), values={"pooled": (len(ids) - 1,)}, record=number, location=record.location)
      )
  examples = long.finish(examples)
  return with_labels(examples, records, spec) if labelled else examples


def predictions(
  outputs: Sequence[np.ndarray], examples: Sequence[Example], spec: TaskSpec
) -> list[dict[str, Any]]:
  return [label_predictions.of_outputs(each.sum(0), spec) for each in outputs]


metrics = label_predictions.metrics


def text_of(record: Record, role: str) -> str:
  """The text of a role. Raises DataError if it is none."""
  text = record.fields.get(role)
  if not isinstance(text, str):
    raise DataError(f"{record.location}: {role} is {text!r}, not a text")
  return text


def with_labels(
  examples: Sequence[Example], records: Sequence[Record], spec: TaskSpec
) -> list[Example]:
  """The examples with what the head is to say of their first sequence, and its weight.

  Weights are of the classes; further sequences have none. Raises DataError.
  """
  smoothing = spec.settings.get("label_smoothing", 0.0)
  found = []
  for example in examples:
    target_C = labels.target(records[example.record], spec)
    weight = spec.label_weights[target_C.argmax()] if spec.label_weights else 1.0
    others = len(example.sequences) - 1
    values = {
      **example.values,
      "labels": (labels.smoothed(target_C, spec, smoothing),) * (1 + others),
      "weights": (weight,) + (0.0,) * others,
    }
    found.append(dataclasses.replace(example, values=values))
  return found
