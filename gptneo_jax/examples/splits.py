"""Training, validation and test records: by file, or held out of one by a hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptneo_jax.data.splits import Shares, hash_position
from gptneo_jax.examples.records import Record


class Splits(NamedTuple):
  """Records of each split, and what was noticed about them, a line each."""

  train: list[Record]
  validation: list[Record]
  test: list[Record]
  notes: list[str]


def split(
  records: Sequence[Record], shares: Shares, key: Callable[[Record], str]
) -> tuple[list[Record], list[Record], list[Record]]:
  """Train, validation, test: by a hash of the key, so that equal keys are on one side."""
  parts: list[list[Record]] = []
  for name in ("train", "validation", "test"):
    low, high = shares.bounds(name)
    parts.append([r for r in records if low <= hash_position(key(r)) < high])
  return parts[0], parts[1], parts[2]
