"""Packs examples into rows of a fixed length, so that none can see another.

Each sequence of a row is a segment of its own, to which attention is kept, and its positions start
at 0: it gets what it would get alone. The rows are those of best-fit decreasing over all examples
of an epoch; which example of a length stands where is drawn anew for each epoch, so the number of
rows is that of every epoch.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """What is learned or predicted together: one sequence, or several (the choices of a question).

  Attributes:
    sequences: ids of each, int32.
    tokens: arrays with an entry for each token: name -> one array for each sequence.
    values: name -> one value for each sequence.
    record: index of the record that it is of.
    location: 'file:line' of that, for messages.
    extra: what `Kind.predictions` needs of it beside; not seen by the model.
  """

  sequences: tuple[np.ndarray, ...]
  tokens: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)
  values: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  record: int = 0
  location: str = ""
  extra: Any = None

  @property
  def length(self) -> int:
    """Tokens of all its sequences."""
    return sum(map(len, self.sequences))


class Column(NamedTuple):
  """An array of a batch.

  of: 'token': B x T, from Example.tokens. 'sequence': B x E, a place for each sequence of a row,
    from Example.values; 'position': the same, of places in the sequence that become places in the
    row; 'example': B x E, the number of the example in the row, from 1, of each sequence.
  shape: further axes of each entry.
  """

  of: str
  dtype: Any
  fill: float = 0
  shape: tuple[int, ...] = ()


class Place(NamedTuple):
  """Where an example stands: its row and where its first sequence begins there."""

  row: int
  start: int
  segment: int  # number of its first sequence in the row, from 0


class Packing:
  """Rows of all examples, and where each of them stands.

  Attributes:
    rows: number of rows.
    segments: the most sequences in a row, E.
  """

  def __init__(self, examples: Sequence[Example], seq_len: int, *, packed: bool):
    """packed: False gives each example a row of its own.

    Raises ValueError for an example that is longer than a row.
    """
    self.examples, self.seq_len = examples, seq_len
    kinds: dict[tuple[int, int], list[int]] = defaultdict(list)  # alike in a row
    for number, example in enumerate(examples):
      kinds[example.length, len(example.sequences)].append(number)
    longest = max(kinds, default=(0, 0))
    if longest[0] > seq_len:
      at = examples[kinds[longest][0]].location
      raise ValueError(f"{at}: an example of {longest[0]} tokens in rows of {seq_len}")
    order = [number for kind in sorted(kinds, reverse=True) for number in kinds[kind]]
    self._alike = [np.array(kinds[kind]) for kind in sorted(kinds, reverse=True)]
    lengths = [examples[number].length for number in order]
    # Row by row the places, as indices into `order`.
    self._rows = _best_fit(lengths, seq_len) if packed else [[n] for n in range(len(order))]
    self._order = np.array(order, np.int64)
    self.rows = len(self._rows)
    self.segments = max(
      (sum(len(examples[order[n]].sequences) for n in row) for row in self._rows), default=1
    )

  def in_order(self) -> list[list[int]]:
    """The examples of each row."""
    return [[int(self._order[n]) for n in row] for row in self._rows]

  def shuffled(self, seed: int, epoch: int) -> list[list[int]]:
    """The examples of each row in one epoch; rows in another order too."""
    chance = np.random.default_rng([seed, epoch])
    order = np.concatenate([chance.permutation(alike) for alike in self._alike])
    rows = chance.permutation(self.rows)
    return [[int(order[n]) for n in self._rows[row]] for row in rows]

  def places(self) -> list[Place]:
    """Where each example stands in the rows of `in_order`."""
    places: list[Place] = [Place(0, 0, 0)] * len(self.examples)
    for row, numbers in enumerate(self.in_order()):
      start = segment = 0
      for number in numbers:
        places[number] = Place(row, start, segment)
        start += self.examples[number].length
        segment += len(self.examples[number].sequences)
    return places

  def batch(self, rows: Sequence[Sequence[int]], layout: Mapping[str, Column]) -> dict[str, Any]:
    """The arrays of some rows, each given by its examples; [] is a row of padding.

    `inputs`, `segment_ids` (from 1; 0 is padding) and `positions`, int32 B x T, and those of
    `layout`.
    """
    B, T, E = len(rows), self.seq_len, self.segments
    batch = {name: np.zeros((B, T), np.int32) for name in ("inputs", "segment_ids", "positions")}
    for name, column in layout.items():
      across = T if column.of == "token" else E
      batch[name] = np.full((B, across, *column.shape), column.fill, column.dtype)
    for b, numbers in enumerate(rows):
      start = segment = 0
      for order, example in enumerate(map(self.examples.__getitem__, numbers), 1):
        for s, ids in enumerate(example.sequences):
          end = start + len(ids)
          batch["inputs"][b, start:end] = ids
          batch["segment_ids"][b, start:end] = segment + 1
          batch["positions"][b, start:end] = np.arange(len(ids))
          for name, column in layout.items():
            if column.of == "token":
              batch[name][b, start:end] = example.tokens[name][s]
            elif column.of == "example":
              batch[name][b, segment] = order
            else:
              shift = start if column.of == "position" else 0
              batch[name][b, segment] = np.asarray(example.values[name][s]) + shift
          start, segment = end, segment + 1
    return batch


def _best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
  """Rows of indices: each goes into the fullest row that has room. Lengths do not rise."""
  rows: list[list[int]] = []
  by_room: dict[int, list[int]] = defaultdict(list)  # room left -> rows
  rooms: list[int] = []  # those that there are, ascending
  for index, length in enumerate(lengths):
    at = bisect.bisect_left(rooms, length)
    if at == len(rooms):
      row, room = len(rows), size
      rows.append([])
    else:
      room = rooms[at]
      row = by_room[room].pop()
      if not by_room[room]:
        rooms.pop(at)
    rows[row].append(index)
    left = room - length
    if not by_room[left]:
      bisect.insort(rooms, left)
    by_room[left].append(row)
  return rows
