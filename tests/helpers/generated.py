"""Prompts at random, and the new ids of what `lm.generate` returns."""

import numpy as np


def prompts_of(*lengths, seed=0):
  """Prompts of these lengths for a vocabulary of 280."""
  rng = np.random.default_rng(seed)
  return [rng.integers(1, 280, n).tolist() for n in lengths]


def new_ids(result, row=0):
  """The new ids of one row."""
  width = result.sequences.shape[1] - result.lengths.max()
  return result.sequences[row, width : width + result.lengths[row]].tolist()
