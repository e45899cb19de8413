"""Against SQuAD's own evaluation, written out from its definition."""

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.examples import squad_metrics


def words_of(answer):
  """normalize_answer of evaluate-v2.0.py, step by step."""
  kept = "".join(character for character in answer.lower() if character not in string.punctuation)
  return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def f1_of(said, true):
  said, true = words_of(said), words_of(true)
  if not said or not true:
    return float(said == true)
  left, common = collections.Counter(true), 0
  for word in said:
    common += left[word] > 0
    left[word] -= 1
  if not common:
    return 0.0
  precision, recall = common / len(said), common / len(true)
  return 2 * precision * recall / (precision + recall)


texts = st.lists(
  st.sampled_from(["the", "The", "a", "an", "cat", "cats", "cat,", "U.S.", "-", "é", "9"]),
  max_size=4,
).map(" ".join)


@given(texts, st.lists(texts, max_size=3))
def test_exact_match_and_f1(said, true):
  kept = [each for each in true if words_of(each)] or [""]
  assert squad_metrics.exact_match(said, true) == max(words_of(said) == words_of(x) for x in kept)
  assert squad_metrics.f1(said, true) == pytest.approx(max(f1_of(said, x) for x in kept))


def test_examples_of_the_rules():
  assert squad_metrics.exact_match("The Cat.", ["cat"]) == 1
  assert squad_metrics.exact_match("cat", ["cats"]) == 0
  assert squad_metrics.f1("the black cat", ["black dog", "white cat"]) == 0.5
  assert squad_metrics.exact_match("", []) == squad_metrics.f1("", []) == 1
  assert squad_metrics.f1("x", []) == 0


answers = st.tuples(st.integers(-2, 2), st.sampled_from([0.0, 0.4, 1.0]), st.booleans())


@given(st.lists(answers, min_size=1, max_size=8))
def test_the_best_threshold_is_that_of_a_search(items):
  scores, worths = (np.array([item[n] for item in items], float) for n in (0, 1))
  answerable = np.array([item[2] for item in items])

  def worth(threshold):
    return np.where(scores <= threshold, worths, ~answerable).mean()

  best, threshold = squad_metrics.best_threshold(scores, worths, answerable)
  assert best == pytest.approx(max(worth(t) for t in [-9.0, *scores]))
  assert worth(threshold) == pytest.approx(best)
