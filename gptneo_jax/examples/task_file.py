"""task.json: what a fine-tuned folder says of its task, so that its use is that of its training."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from gptneo_jax.errors import UserError, did_you_mean

FILE = "task.json"


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """A task, and what its examples are made with.

  Attributes:
    task: name of the module of `examples`.
    max_tokens: the longest sequence.
    row_tokens: those of a row, which has room for all sequences of an example; 0: max_tokens.
    on_too_long: 'stop', 'drop' or 'truncate_left', for a longer one.
    columns: 'role=field,…' of the training file; '' where the fields were found by their names.
    labels: their names, in the order of the model's outputs; () without any.
    label_weights: what an example of each label counts; () is 1.
    problem: of sequence classification and pairs: single_label_classification,
      multi_label_classification or regression; '' elsewhere.
    tokens: ids of special tokens by role ('start', 'delimiter', 'extract').
    settings: those of config.examples.
  """

  task: str
  max_tokens: int
  row_tokens: int = 0
  on_too_long: str = "stop"
  columns: str = ""
  labels: tuple[str, ...] = ()
  label_weights: tuple[float, ...] = ()
  problem: str = ""
  tokens: dict[str, int] = dataclasses.field(default_factory=dict)
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)

  def replace(self, **changes: Any) -> TaskSpec:
    return dataclasses.replace(self, **changes)

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

  @classmethod
  def from_json(cls, text: str, path: str) -> TaskSpec:
    """Raises UserError naming `path` where the text is not a spec's."""
    try:
      fields: Any = json.loads(text)
    except ValueError as error:
      raise UserError(f"{path} cannot be read: {error}") from None
    names = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(fields, dict) or "task" not in fields:
      raise UserError(f"{path} names no task")
    for name in fields:
      if name not in names:
        raise UserError(f"{path}: unknown field {name!r}{did_you_mean(name, names)}")
    for name in ("labels", "label_weights"):
      fields[name] = tuple(fields.get(name, ()))
    return cls(**fields)


def save(folder: epath.PathLike, spec: TaskSpec) -> None:
  """Writes FOLDER/task.json; FOLDER may be gs://."""
  (epath.Path(folder) / FILE).write_text(spec.to_json())


def load(folder: epath.PathLike) -> TaskSpec | None:
  """Reads FOLDER/task.json; None if there is none. Raises UserError if it is damaged."""
  path = epath.Path(folder) / FILE
  return TaskSpec.from_json(path.read_text(), str(path)) if path.exists() else None
