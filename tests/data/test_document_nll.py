"""Losses of documents from batches of windows, computed one batch ahead."""

import numpy as np
import pytest

from gptneo_jax import data


def test_one_ahead():
  """The next item is made and started before the result of the one before is used."""
  seen = []

  def items():
    for number in range(3):
      seen.append(f"made {number}")
      yield number

  def start(number):
    seen.append(f"started {number}")
    return 10 * number

  for number, result in data.one_ahead(start, items()):
    assert result == 10 * number
    seen.append(f"used {number}")
  assert seen == [
    "made 0", "started 0", "made 1", "started 1", "used 0", "made 2", "started 2", "used 1",
    "used 2",
  ]  # fmt: skip
  assert list(data.one_ahead(start, [])) == []
  assert list(data.one_ahead(lambda _: None, [1])) == [(1, None)]  # a result of any kind


def test_rows_are_summed_by_document():
  """Document 0 has windows in both batches, 1 has none, rows of -1 are padding."""
  batches = [
    {"nll": np.array([[1.0, 0.5], [2.0, 0.0]], np.float32), "row_document": np.array([0, 2])},
    {"nll": np.array([[4.0, 0.25], [99.0, 99.0]], np.float32), "row_document": np.array([0, -1])},
  ]

  def predict(batch):
    assert batch.keys() == {"nll"}
    return batch["nll"]

  assert data.document_nll(predict, batches) == {0: 5.75, 2: 2.0}
  assert batches[0].keys() == {"nll", "row_document"}
  assert data.document_nll(predict, []) == {}


def test_sums_are_of_64_bits():
  nll = np.full((1, 2**16), 0.1, np.float32)
  batches = [{"nll": nll, "row_document": np.array([0])}] * 40
  found = data.document_nll(lambda batch: batch["nll"], batches)[0]
  assert found == pytest.approx(40 * 2**16 * float(np.float32(0.1)), rel=1e-12)
