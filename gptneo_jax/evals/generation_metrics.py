"""Metrics of generated text: exact match, F1, BLEU, ROUGE, diversity and repetition."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

from gptneo_jax.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REPEATED = 4  # length of the n-grams whose repetition is measured


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
  """Metrics of predictions; each has one or more references, of which the best match counts.

  Against the references:
    exact_match, f1: 0 to 1, of words as SQuAD normalises them (lower case, without punctuation and
      the articles a, an, the; Rajpurkar et al. 2016).
    bleu: 0 to 100, of the corpus (sacrebleu with its default 13a tokens).
    rouge1, rouge2, rougeL: 0 to 1, F-measures (rouge_score without stemming, which sees only the
      letters a to z and digits).

  Of the predictions alone, with words separated by white space:
    distinct_1, _2, _3: distinct n-grams over all n-grams (Li et al. 2016).
    repetition_4: share of a text's 4-grams that occur earlier in it (Welleck et al. 2020), mean
      over texts.
    longest_repeat: words of the longest run that occurs twice in a text, mean over texts.
    mean_words.
  A metric for which every text is too short is left out.

  Raises:
    UserError: a library is not installed, or there is no prediction.
  """
  if not predictions:
    raise UserError("no answer to score")
  bleu, rouge = bleu_and_rouge()
  rouge_rows = [rouge.score_multi(list(own), text) for own, text in zip(references, predictions)]
  most = max(map(len, references))
  streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
  return {
    "exact_match": mean(exact_match(*pair) for pair in zip(predictions, references)),
    "f1": mean(f1(*pair) for pair in zip(predictions, references)),
    "bleu": bleu.corpus_score(list(predictions), streams).score,
    **{
      name: mean(float(row[name].fmeasure) for row in rouge_rows)
      for name in ("rouge1", "rouge2", "rougeL")
    },
    **_diversity([text.split() for text in predictions]),
  }


def exact_match(prediction: str, references: Sequence[str]) -> float:
  own = _squad_words(prediction)
  return float(any(own == _squad_words(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
  """Harmonic mean of the words' precision and recall, for the best reference."""
  return max(_f1(_squad_words(prediction), _squad_words(reference)) for reference in references)


def mean(values: Iterable[float]) -> float:
  values = list(values)
  return sum(values) / len(values)


def bleu_and_rouge() -> tuple[Any, Any]:
  """sacrebleu's BLEU and rouge_score's scorer. Raises UserError if one is not installed."""
  try:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
  except ImportError as error:
    raise UserError(
      f"answers need {error.name}, which is not installed: pip install 'gptneo_jax[eval]'"
    ) from None
  return BLEU(), RougeScorer(["rouge1", "rouge2", "rougeL"])


def _f1(own: list[str], reference: list[str]) -> float:
  if not own or not reference:
    return float(own == reference)
  common = (collections.Counter(own) & collections.Counter(reference)).total()
  return 2 * common / (len(own) + len(reference))


def _squad_words(text: str) -> list[str]:
  return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _diversity(texts: list[list[str]]) -> dict[str, float]:
  metrics = {}
  for n in (1, 2, 3):
    found = [ngram for words in texts for ngram in _ngrams(words, n)]
    if found:
      metrics[f"distinct_{n}"] = len(set(found)) / len(found)
  found_in = [ngrams for words in texts if (ngrams := _ngrams(words, _REPEATED))]
  if found_in:
    metrics[f"repetition_{_REPEATED}"] = mean(1 - len(set(x)) / len(x) for x in found_in)
  metrics["longest_repeat"] = mean(float(_longest_repeat(words)) for words in texts)
  metrics["mean_words"] = mean(float(len(words)) for words in texts)
  return metrics


def _longest_repeat(words: list[str]) -> int:
  """Length of the longest run of words that occurs twice; the occurrences may overlap."""
  low, high = 0, max(len(words) - 1, 0)
  while low < high:  # bisection: where a run occurs twice, each of its prefixes does
    middle = (low + high + 1) // 2
    ngrams = _ngrams(words, middle)
    low, high = (middle, high) if len(set(ngrams)) < len(ngrams) else (low, middle - 1)
  return low


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
  return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
