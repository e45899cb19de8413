"""The examples of a run, as they are before its start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gptneo_jax.examples import Example, Record, TaskSpec
from gptneo_jax.examples.packing import Packing


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The records of a split as examples in rows."""

  records: Sequence[Record]
  examples: Sequence[Example]
  packing: Packing


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a run makes of its data before the start; splits that it has none of are None."""

  spec: TaskSpec
  train: Encoded
  validation: Encoded | None
  test: Encoded | None
  notes: Sequence[str]

  @property
  def examples_per_epoch(self) -> int:
    return len(self.train.examples)
