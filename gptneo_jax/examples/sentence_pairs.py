"""Two texts and their label: entailment, similarity, a question about a passage.

With examples.both_orders each order is a sequence, and what the head says of both is added: for
relations that have no order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from gptneo_jax.data import DocumentEncoder
from gptneo_jax.examples import delimited, label_predictions, labels, sequence_classification
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.sequence_classification import LABEL, text_of, with_labels
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.examples.too_long import TooLong

ROLES = (
  Role("first", ("text", "sentence1", "premise", "text1", "sentence_a", "question1", "passage")),
  Role(
    "second",
    ("text_pair", "sentence2", "hypothesis", "text2", "sentence_b", "question2", "question"),
  ),
  Role("label", (*LABEL, "answer", "similarity"), needed="some"),
)
OUTPUTS = "sequence"

settle = labels.settle
predictions = sequence_classification.predictions
metrics = label_predictions.metrics


def layout(spec: TaskSpec) -> dict[str, Column]:
  return sequence_classification.layout(spec) | {"groups": Column("example", np.int32)}


def key(record: Record) -> str:
  return json.dumps([record.fields["first"], record.fields["second"]])


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return delimited.TOKENS


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  firsts, seconds = (
    encoder.encode([text_of(record, role) for record in records]) for role in ("first", "second")
  )
  examples, long = [], TooLong(spec)
  orders = 2 if spec.settings.get("both_orders") else 1
  most = min(spec.max_tokens, (spec.row_tokens or spec.max_tokens) // orders)
  for number, (record, first, second) in enumerate(zip(records, firsts, seconds)):
    length = len(first) + len(second) + len(delimited.TOKENS)
    if not long.keeps(record.location, length, most=most):
      continue
    first, second = delimited.cut(first, second, most)
    pairs = [(first, second), (second, first)][:orders]
    sequences = tuple(delimited.sequence(*pair, spec) for pair in pairs)
    pooled = tuple(len(ids) - 1 for ids in sequences)
    examples.append(
      Example(sequences, values={"pooled": pooled}, record=number, location=record.location)
    )
  examples = long.finish(examples)
  return with_labels(examples, records, spec) if labelled else examples
