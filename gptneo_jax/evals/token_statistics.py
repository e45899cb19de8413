"""Statistics of token predictions: loss per subset and by position, accuracy, calibration.

In names: N scored tokens of a batch.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from gptneo_jax.errors import UserError
from gptneo_jax.model.chunked_cross_entropy import TokenPredictions

_BINS = 10  # of confidence


class TokenStatistics:
  """Sums over scored tokens, float64.

  Attributes:
    subsets: {subset: [negative log-likelihood in nats, number of correct predictions]}.
  """

  def __init__(self, seq_len: int):
    self.subsets: dict[str, list[float]] = {}
    self._positions_2xT = np.zeros((2, seq_len))  # tokens, nll
    self._bins_3x10 = np.zeros((3, _BINS))  # tokens, confidence, correct

  def add(self, weights_BxT: np.ndarray, subsets: list[str], predictions: TokenPredictions) -> None:
    """Adds a batch. weights: 1 where a token is scored, else 0; subsets: of the documents' rows,
    which rows of padding follow.

    Raises UserError if a loss is not finite.
    """
    nll_BxT, confidence_BxT, correct_BxT = (np.asarray(x, np.float64) for x in predictions)
    if not np.isfinite(nll_BxT).all():
      raise UserError("the model's losses are not finite; try it with --dtype float32")
    scored_BxT = weights_BxT > 0
    for subset, nll, correct in zip(subsets, nll_BxT.sum(1), correct_BxT.sum(1)):
      entry = self.subsets.setdefault(subset, [0.0, 0.0])
      entry[0] += float(nll)
      entry[1] += float(correct)
    self._positions_2xT[:, : nll_BxT.shape[1]] += scored_BxT.sum(0), nll_BxT.sum(0)
    confidence_N, correct_N = confidence_BxT[scored_BxT], correct_BxT[scored_BxT]
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    for row, value_N in enumerate((np.ones_like(correct_N), confidence_N, correct_N)):
      self._bins_3x10[row] += np.bincount(bin_N, value_N, minlength=_BINS)

  @property
  def tokens(self) -> int:
    return int(self._positions_2xT[0].sum())

  @property
  def loss(self) -> float:
    """Nats per token."""
    return float(self._positions_2xT[1].sum() / self.tokens)

  def get_state(self) -> dict[str, Any]:
    """All sums, as JSON keeps them exactly."""
    return {
      "subsets": self.subsets,
      "positions": self._positions_2xT.tolist(),
      "bins": self._bins_3x10.tolist(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self.subsets = state["subsets"]
    self._positions_2xT = np.array(state["positions"])
    self._bins_3x10 = np.array(state["bins"])

  def by_position(self) -> dict[str, Any]:
    """Loss by the number of inputs seen, in bins of four to each doubling."""
    bins = []
    edges = _quarter_octaves(self._positions_2xT.shape[1])
    for first, end in itertools.pairwise(edges):
      tokens, nll = self._positions_2xT[:, first:end].sum(1)
      if tokens:
        bins.append(
          {"from": first + 1, "to": end, "tokens": int(tokens), "loss": float(nll / tokens)}
        )
    return {"by_position": bins}

  def calibration(self) -> dict[str, Any]:
    """Confidence in the likeliest token and its accuracy, by bins of confidence."""
    bins = [
      {
        "from": number / _BINS,
        "to": (number + 1) / _BINS,
        "tokens": int(tokens),
        "confidence": float(confidence / tokens),
        "accuracy": float(correct / tokens),
      }
      for number, (tokens, confidence, correct) in enumerate(self._bins_3x10.T)
      if tokens
    ]
    error = sum(b["tokens"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    return {"calibration": bins, "calibration_error": error / self.tokens}


def _quarter_octaves(n: int) -> list[int]:
  """Edges of bins from 0 to n: four bins to each doubling, as far as they differ."""
  edges = {min(math.ceil(2 ** (k / 4)), n) for k in range(4 * math.ceil(math.log2(n)) + 1)}
  return sorted({0, n} | edges)
