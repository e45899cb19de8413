"""Best-fit decreasing, and the arrays of packed rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.examples.packing import Column, Example, Packing

LAYOUT = {
  "targets": Column("token", np.int32, -1),
  "pooled": Column("position", np.int32),
  "weights": Column("sequence", np.float32),
  "labels": Column("sequence", np.float32, 0.0, (2,)),
}


def example(number: int, *lengths: int) -> Example:
  """One whose ids say whose they are: 100 · (number + 1) + place in all its sequences."""
  ids, start = [], 0
  for length in lengths:
    ids.append(np.arange(start, start + length, dtype=np.int32) + 100 * (number + 1))
    start += length
  return Example(
    tuple(ids),
    tokens={"targets": tuple(x + 1 for x in ids)},
    values={
      "pooled": tuple(length - 1 for length in lengths),
      "weights": (1.0,) * len(lengths),
      "labels": tuple(np.array([number, length]) for length in lengths),
    },
    location=f"file:{number + 1}",
  )


lengths_of_examples = st.lists(
  st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple), min_size=1, max_size=40
)


@given(lengths_of_examples, st.booleans(), st.integers(0, 3))
def test_every_example_stands_once_and_whole(lengths, packed, epoch):
  examples = [example(number, *each) for number, each in enumerate(lengths)]
  packing = Packing(examples, 12, packed=packed)
  rows = packing.shuffled(0, epoch)
  assert len(rows) == packing.rows
  assert sorted(n for row in rows for n in row) == list(range(len(examples)))
  batch = packing.batch(rows, LAYOUT)
  for b, row in enumerate(rows):
    segments = [ids for number in row for ids in examples[number].sequences]
    assert len(segments) <= packing.segments
    for s, ids in enumerate(segments):
      own = batch["segment_ids"][b] == s + 1
      np.testing.assert_array_equal(batch["inputs"][b, own], ids)
      np.testing.assert_array_equal(batch["targets"][b, own], ids + 1)
      np.testing.assert_array_equal(batch["positions"][b, own], np.arange(len(ids)))
      assert batch["inputs"][b, batch["pooled"][b, s]] == ids[-1]
      assert batch["weights"][b, s] == 1 and batch["labels"][b, s, 1] == len(ids)
    assert not batch["weights"][b, len(segments) :].any()
    padding = batch["segment_ids"][b] == 0
    assert padding.sum() == 12 - sum(map(len, segments))
    assert (batch["targets"][b, padding] == -1).all() and not batch["inputs"][b, padding].any()


@given(lengths_of_examples)
def test_no_two_rows_would_fit_into_one(lengths):
  packing = Packing([example(n, *each) for n, each in enumerate(lengths)], 12, packed=True)
  used = sorted(sum(packing.examples[n].length for n in row) for row in packing.in_order())
  assert len(used) < 2 or used[0] + used[1] > 12


def test_best_fit_takes_the_fullest_row_that_has_room():
  packing = Packing([example(n, k) for n, k in enumerate([7, 5, 3, 2, 1])], 10, packed=True)
  assert [[packing.examples[n].length for n in row] for row in packing.in_order()] == [
    [7, 3],
    [5, 2, 1],
  ]


def test_places_are_those_of_the_rows():
  packing = Packing(
    [example(n, *each) for n, each in enumerate([(2, 3), (4,), (1, 1)])], 9, packed=True
  )
  batch = packing.batch(packing.in_order(), LAYOUT)
  for number, place in enumerate(packing.places()):
    first = packing.examples[number].sequences[0]
    assert batch["inputs"][place.row, place.start] == first[0]
    assert batch["segment_ids"][place.row, place.start] == place.segment + 1


def test_epochs_differ_and_are_those_of_their_seed():
  packing = Packing([example(n, 3) for n in range(30)], 12, packed=True)
  assert packing.shuffled(0, 0) == packing.shuffled(0, 0)
  assert packing.shuffled(0, 0) != packing.shuffled(0, 1)
  assert packing.shuffled(0, 0) != packing.shuffled(1, 0)


def test_a_longer_example_than_a_row_is_named():
  with pytest.raises(ValueError, match="file:2: an example of 13 tokens in rows of 12"):
    Packing([example(0, 3), example(1, 6, 7)], 12, packed=True)


def test_a_row_of_padding():
  packing = Packing([example(0, 3)], 12, packed=True)
  batch = packing.batch([[], [0]], LAYOUT)
  assert not batch["segment_ids"][0].any() and not batch["weights"][0].any()
