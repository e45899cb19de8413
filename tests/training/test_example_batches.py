"""Batches of packed examples: epochs, hosts, resume."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import DataError
from gptneo_jax.examples.packing import Column, Example, Packing
from gptneo_jax.training.example_batches import ExampleBatches

LAYOUT = {"weights": Column("sequence", np.float32)}
T = 12


def packing(lengths, packed=True) -> Packing:
  examples = [
    Example((np.full(length, number + 1, np.int32),), values={"weights": (1.0,)}, location="f:1")
    for number, length in enumerate(lengths)
  ]
  return Packing(examples, T, packed=packed)


def batches(lengths, *, rows=None, seed=0, batch_size=3) -> ExampleBatches:
  return ExampleBatches(packing(lengths), LAYOUT, batch_size=batch_size, seed=seed, rows=rows)


LENGTHS = [7, 5, 5, 5, 3, 3, 2, 9, 12, 4, 4, 1, 6, 6]


def test_an_epoch_holds_each_example_once():
  drawn = batches(LENGTHS)
  seen = []
  for step in range(2 * drawn.steps_per_epoch):
    batch = next(drawn)
    seen += [ids[row] for ids in batch["inputs"] for row in np.flatnonzero(np.diff(ids, prepend=0))]
    if (step + 1) % drawn.steps_per_epoch == 0:
      assert sorted(n for n in seen if n) == list(range(1, len(LENGTHS) + 1))
      assert drawn.epochs["examples"] == (step + 1) / drawn.steps_per_epoch
      seen = []


@settings(max_examples=25)
@given(st.lists(st.integers(1, T), min_size=1, max_size=30), st.integers(0, 9), st.integers(1, 4))
def test_resumed_anywhere_the_batches_are_the_same(lengths, before, batch_size):
  first = batches(lengths, batch_size=batch_size)
  for _ in range(before):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  second = batches(lengths, batch_size=batch_size)
  second.set_state(state)
  for _ in range(3):
    expected, got = next(first), next(second)
    for name in expected:
      np.testing.assert_array_equal(expected[name], got[name])


def test_hosts_share_the_rows():
  whole = batches(LENGTHS)
  parts = [batches(LENGTHS, rows=np.array(rows)) for rows in ([0, 2], [1])]
  for _ in range(5):
    batch, (one, other) = next(whole), map(next, parts)
    for name in batch:
      np.testing.assert_array_equal(batch[name][[0, 2]], one[name])
      np.testing.assert_array_equal(batch[name][[1]], other[name])
  assert parts[0].get_state() == parts[1].get_state()


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"seed": 1}, "seed was 0 and is 1 now"),
    ({"batch_size": 2}, "batch_size was 3 and is 2 now"),
    ({"lengths": LENGTHS[:-1]}, "examples was"),
  ],
)
def test_another_run_cannot_be_resumed(other, message):
  state = batches(LENGTHS).get_state()
  with pytest.raises(DataError, match=message):
    batches(**{"lengths": LENGTHS, **other}).set_state(state)
