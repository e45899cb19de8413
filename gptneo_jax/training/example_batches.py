"""Batches of packed examples: epoch after epoch, with exact resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from gptneo_jax.data import DataError
from gptneo_jax.examples.packing import Column, Packing


class ExampleBatches:
  """Iterator over batches without end; see `tasks.Batches`.

  An epoch holds each example once. Its last batch is filled up with rows of padding, which have no
  weight. The position is the number of batches drawn: resuming costs the same at any step.

  Attributes:
    wait_seconds: 0: rows are filled as they are asked for, in microseconds.
  """

  wait_seconds = 0.0

  def __init__(
    self,
    packing: Packing,
    layout: Mapping[str, Column],
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
  ):
    """rows: those of the global batch that this host fills; None for all."""
    self._packing, self._layout = packing, dict(layout)
    self._size, self._seed = batch_size, seed
    self._own = np.arange(batch_size) if rows is None else np.asarray(rows)
    self._drawn = 0
    self._epoch, self._rows = -1, []
    self.steps_per_epoch = -(-packing.rows // batch_size)
    self._fingerprint = json.loads(
      json.dumps(
        {
          "examples": fingerprint(packing),
          "batch_size": batch_size,
          "seq_len": packing.seq_len,
          "seed": seed,
        }
      )
    )

  def __iter__(self) -> ExampleBatches:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    epoch, step = divmod(self._drawn, self.steps_per_epoch)
    if epoch != self._epoch:
      self._epoch, self._rows = epoch, self._packing.shuffled(self._seed, epoch)
    first = step * self._size
    numbers = (first + row for row in self._own)
    batch = self._packing.batch(
      [self._rows[n] if n < len(self._rows) else [] for n in numbers], self._layout
    )
    self._drawn += 1
    return batch

  @property
  def epochs(self) -> dict[str, float]:
    return {"examples": self._drawn / self.steps_per_epoch}

  def get_state(self) -> dict[str, Any]:
    return {"fingerprint": dict(self._fingerprint), "streams": {"0": {"drawn": self._drawn}}}

  def set_state(self, state: Mapping[str, Any]) -> None:
    for name, now in self._fingerprint.items():
      if (then := state["fingerprint"].get(name)) != now:
        raise DataError(f"cannot resume the data: {name} was {then!r} and is {now!r} now")
    self._drawn = state["streams"]["0"]["drawn"]

  def close(self) -> None:
    """Nothing is open."""


def fingerprint(packing: Packing) -> str:
  """A hash of all examples and of the rows that they make."""
  digest = hashlib.blake2b(digest_size=8)
  for row in packing.in_order():
    digest.update(str(row).encode())
    for number in row:
      example = packing.examples[number]
      for part, ids in enumerate(example.sequences):
        digest.update(ids.tobytes())
        for arrays in (example.tokens, example.values):
          for name in sorted(arrays):
            digest.update(np.asarray(arrays[name][part]).tobytes())
  return digest.hexdigest()
