"""Exact match and F1 of answers, as SQuAD's own evaluate-v1.1.py and evaluate-v2.0.py have them.

Sources: Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def normalized(answer: str) -> str:
  """In lower case, without ASCII punctuation, English articles and white space beyond one space."""
  return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, true: Sequence[str]) -> float:
  """1 if it is one of the true answers, which are [''] where there is none."""
  return float(normalized(answer) in {normalized(each) for each in _counting(true)})


def f1(answer: str, true: Sequence[str]) -> float:
  """That of the words that it shares with the true answer it is nearest to."""
  return max(_f1(normalized(answer).split(), normalized(each).split()) for each in _counting(true))


def best_threshold(
  scores_N: np.ndarray, worths_N: np.ndarray, answerable_N: np.ndarray
) -> tuple[float, float]:
  """The best mean worth that a threshold gives, and the threshold.

  An answer is given where its score is at most the threshold; giving none is worth 1 where there is
  none.

  scores_N: how much better than the answer no answer is. worths_N: what the answer is worth if it
    is given.
  """
  order = np.argsort(scores_N, kind="stable")
  scores = scores_N[order]
  gains = (worths_N - ~answerable_N)[order]
  sums = (~answerable_N).sum() + np.concatenate([[0.0], gains.cumsum()])
  # Answers of one score are given together.
  possible = np.concatenate([[True], scores[1:] != scores[:-1], [True]])
  best = int(np.where(possible, sums, -np.inf).argmax())
  threshold = scores[best - 1] if best else scores[0] - 1.0
  return float(sums[best] / len(scores)), float(threshold)


def _counting(true: Sequence[str]) -> Sequence[str]:
  return [each for each in true if normalized(each)] or [""]


def _f1(said: list[str], true: list[str]) -> float:
  if not said or not true:
    return float(said == true)
  common = sum((collections.Counter(said) & collections.Counter(true)).values())
  return 2 * common / (len(said) + len(true))
