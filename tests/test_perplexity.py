"""Losses of documents, summed from windows."""

import math

import numpy as np

from gptneo_jax.evals import perplexity


class Windows(list):
  """What evaluation_batches gives: batches, and what they hold of each document."""

  subsets = ("Prose", "Verse", "Prose")
  bytes_per_document = (10, 4, 6)
  tokens_per_document = (3, 2, 1)


def test_sums_per_subset_and_overall():
  """Document 0 lies in two windows; a row of padding counts for nothing."""
  batches = Windows(
    [
      {"nll": np.array([1.5, 2.0]), "row_document": np.array([0, 0])},
      {"nll": np.array([1.0, 0.25, 99.0]), "row_document": np.array([1, 2, -1])},
    ]
  )
  results = perplexity.evaluate(lambda batch: batch["nll"], batches)
  assert results["eval/loss"] == 4.75 / 6
  assert results["eval/bits_per_byte"] == 4.75 / (20 * math.log(2))
  assert results["eval/loss/Prose"] == 3.75 / 4
  assert results["eval/bits_per_byte/Verse"] == 1.0 / (4 * math.log(2))
  assert results["eval/perplexity/Verse"] == math.exp(0.5)
