"""What published runs of a model's size trained with: tokens, batch, learning rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Tokens for each parameter that give the least loss for the FLOPs (Hoffmann et al., 2022,
# arXiv:2203.15556). Models that are to be used much are trained on more.
COMPUTE_OPTIMAL = 20

# GPT-3's (Brown et al., 2020, arXiv:2005.14165, table 2.1): parameters, tokens of a batch, Adam's
# peak rate. The released GPT-Neo models took their rates from it.
_GPT3 = (
  (125e6, 0.5e6, 6.0e-4),
  (350e6, 0.5e6, 3.0e-4),
  (760e6, 0.5e6, 2.5e-4),
  (1.3e9, 1e6, 2.0e-4),
  (2.7e9, 1e6, 1.6e-4),
  (6.7e9, 2e6, 1.2e-4),
  (13e9, 2e6, 1.0e-4),
)


class Published(NamedTuple):
  """tokens: in all, compute-optimal. batch: tokens of an update. rate: peak, of Adam.
  smaller: whether the model is smaller than any of theirs; it takes a higher rate, then."""

  tokens: float
  batch: float
  rate: float
  smaller: bool


def published(parameters: int) -> Published:
  """What is known for a size, between two of theirs on logarithmic scales."""
  sizes, batches, rates = np.log(np.array(_GPT3)).T
  size = math.log(parameters)
  batch, rate = (float(np.exp(np.interp(size, sizes, values))) for values in (batches, rates))
  return Published(COMPUTE_OPTIMAL * parameters, batch, rate, size < sizes[0])
