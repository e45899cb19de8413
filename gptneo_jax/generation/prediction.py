"""What a model with a head says of texts and records: labels, values, choices, entities, spans."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gptneo_jax import examples
from gptneo_jax.axes import round_up
from gptneo_jax.config import ModelConfig
from gptneo_jax.data import DocumentEncoder
from gptneo_jax.errors import UserError
from gptneo_jax.examples import columns, labels, records
from gptneo_jax.examples.packing import Column, Packing
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.generation.requests import require_tokenizer
from gptneo_jax.model import heads, packed_outputs
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways

ROWS = 8  # of a batch
_LEAST = 64  # tokens of a row

_PLACES: dict[str, dict[str, Column]] = {
  "sequence": {"pooled": Column("position", np.int32)},
  "token": {},
}


def predict(
  lm: Any,
  given: Sequence[Record],
  *,
  batch_size: int = ROWS,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[dict[str, Any]]:
  """One prediction for each record, in their order, as JSON holds it.

  The module of `lm.task` in `examples` says what is in it. Longer texts than the model was trained
  on are cut at the left, with a warning.

  Args:
    lm: an engine.LanguageModel with a head.
    given: records, whose fields are named by role.
    batch_size: rows that are computed together; short texts share a row.
    progress: called with the rows done and all rows.

  Raises:
    UserError: the model has no head to predict with; or naming a record that is wrong.
  """
  spec, kind = task_of(lm)
  tokenizer = require_tokenizer(lm, "predict")
  made = kind.encode(given, spec, DocumentEncoder(tokenizer), labelled=False)
  if not made:
    return []
  longest = max(example.length for example in made)
  length = max(_LEAST, 1 << (longest - 1).bit_length())
  packing = Packing(made, length, packed=True)
  packing.segments = 1 << (packing.segments - 1).bit_length()  # so that few shapes are compiled
  return kind.predictions(_outputs(lm, packing, kind.OUTPUTS, batch_size, progress), made, spec)


def read(lm: Any, path: str, given: str | None = None, *, labelled: bool) -> list[Record]:
  """The records of a file for the model, with their fields named by role.

  path: as data.path; '-' is standard input. given: data.columns; None: as in training, unless the
  records have none of those fields (a model of a table reads lines of text too). labelled: whether
  their labels are needed. Raises data.DataError.
  """
  spec, kind = task_of(lm)
  named = spec.columns if given is None else given
  found = records.read_records(path, header=columns.has_header(named))
  if given is None and not columns.occur(named, found):
    named = ""
  return columns.by_role(found, kind.ROLES, named, labelled=labelled)


def task_of(lm: Any) -> tuple[TaskSpec, examples.Kind]:
  """What the model was trained for. Raises UserError if it is not for predictions."""
  spec = lm.task or _task_of_config(lm.config)
  kind = examples.find(spec.task)
  if not kind.OUTPUTS:
    raise UserError(
      f"the model answers by generating text (task {spec.task}), and predicts no labels:"
      " python -m gptneo_jax.generate --checkpoint DIR --prompt TEXT"
    )
  return spec.replace(on_too_long="truncate_left"), kind


def records_of(inputs: Any, spec: TaskSpec) -> list[Record]:
  """Records, with their fields by role, of texts and of dictionaries of fields. Raises UserError.

  A text is the role that comes first among those that are needed.
  """
  roles = examples.find(spec.task).ROLES
  given = [inputs] if isinstance(inputs, str | dict) else list(inputs)
  found = []
  for number, one in enumerate(given, 1):
    if isinstance(one, str):
      one = {"text": one}
    if not isinstance(one, dict):
      raise UserError(f"input {number} is {one!r}, neither a text nor a dictionary of fields")
    found.append(Record(one, f"input {number}", "the input"))
  return columns.by_role(found, roles, "", labelled=False)


def _outputs(
  lm: Any, packing: Packing, kind: str, batch_size: int, progress: Callable[[int, int], object]
) -> list[np.ndarray]:
  """What the head says of each example."""
  rows = packing.in_order()
  size = round_up(min(batch_size, len(rows)), batch_ways(lm.mesh))
  said: list[np.ndarray] = []
  module = heads.build(lm.config)
  for first in range(0, len(rows), size):
    taken: list[Sequence[int]] = [*rows[first : first + size]]
    progress(first, len(rows))
    batch = packing.batch(taken + [[]] * (size - len(taken)), _PLACES[kind])
    with jax.set_mesh(lm.mesh), exact_products(lm.config.dtype):
      said.extend(np.asarray(_of_batch(module, lm.params, batch)))
  progress(len(rows), len(rows))
  return packed_outputs.of_examples(packing, said, kind)


@functools.partial(jax.jit, static_argnames="module")
def _of_batch(module, params, batch):
  return packed_outputs.of_batch(module, params, batch)


def _task_of_config(config: ModelConfig) -> TaskSpec:
  """The task of a model that was not trained here, by its head; labels are those of its config."""
  tasks = {
    "sequence_classification": "sequence_classification",
    "token_classification": "token_classification",
    "question_answering": "question_answering",
  }
  if config.head not in tasks:
    raise UserError(
      f"the model's head is {config.head!r}, and there is no task.json that says what it predicts"
    )
  names = config.id2label or tuple(f"LABEL_{n}" for n in range(config.num_labels))
  problem = ""
  if config.head == "sequence_classification":
    problem = config.problem_type or (
      labels.REGRESSION if config.num_labels == 1 else labels.SINGLE
    )
  return TaskSpec(
    task=tasks[config.head],
    max_tokens=config.max_position_embeddings,
    row_tokens=config.max_position_embeddings,
    labels=() if problem == labels.REGRESSION or config.head == "question_answering" else names,
    problem=problem,
    settings={"stride": 128, "max_answer_tokens": 30, "no_answer_threshold": 0.0},
  )
