"""Labelled examples: from records of a file to packed rows of token ids, and back to predictions.

One module for each kind of task, with the functions of `Kind`; training, `predict`, `evaluate` and
the Python face go through them, so that the ids of an example are the same everywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from gptneo_jax.data import DocumentEncoder
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec

__all__ = ["Column", "Example", "Kind", "Record", "Role", "TaskSpec", "find"]


class Kind(Protocol):
  """What a module of this package offers for one task.

  Attributes:
    ROLES: what a record holds, such as text and label; data.columns names the fields of each.
    OUTPUTS: whether the model speaks once for each 'sequence', or for each 'token'; '' if its
      answers are generated.
  """

  ROLES: tuple[Role, ...]
  OUTPUTS: str

  def layout(self, spec: TaskSpec) -> dict[str, Column]:
    """Arrays of a packed batch beside `inputs`, `segment_ids` and `positions`, by name.

    Where OUTPUTS is 'sequence', `pooled` is one of them: the token that the head reads.
    """
    ...

  def key(self, record: Record) -> str:
    """What of a record must not stand on both sides of a split: all that the model is to see."""
    ...

  def settle(self, records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
    """The spec with what only the training records say, such as the labels. Raises DataError."""
    ...

  def added_tokens(self, spec: TaskSpec) -> dict[str, str]:
    """Special tokens that it needs: role -> text; `spec.tokens` has their ids when it encodes."""
    ...

  def encode(
    self, records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
  ) -> list[Example]:
    """Examples in the order of the records, of which one may have several or none.

    records: their fields are named by role. labelled: False for records that are to be predicted,
      whose labels are neither needed nor read.
    Raises DataError, with file and line, for a record that cannot be an example.
    """
    ...

  def predictions(
    self, outputs: Sequence[np.ndarray], examples: Sequence[Example], spec: TaskSpec
  ) -> list[dict[str, Any]]:
    """One JSON object for each record, in their order.

    outputs: of each example what the model says, float32 and without padding: sequences x C, or
      tokens of all its sequences x C.
    """
    ...

  def metrics(
    self, predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
  ) -> dict[str, float]:
    """What the predictions are worth, by name ('accuracy'); higher is better but for errors."""
    ...


def find(task: str) -> Kind:
  """The kind of a task. Raises UserError if there is none of that name."""
  if task in names():
    return cast(Kind, importlib.import_module(f"{__name__}.{task}"))
  raise UserError(
    f"task is {task!r}{did_you_mean(task, names())}; with examples there is"
    f" {', '.join(map(repr, names()))}"
  )


_KINDS = (
  "instruction", "multiple_choice", "question_answering", "sentence_pairs",
  "sequence_classification", "token_classification",
)  # fmt: skip


def names() -> list[str]:
  """Tasks that learn from examples."""
  there = {module.name for module in pkgutil.iter_modules(__path__)}
  return [name for name in _KINDS if name in there]
