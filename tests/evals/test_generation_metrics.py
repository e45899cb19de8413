"""Metrics of generated text, against values worked out by hand and published ones."""

import sys

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.evals.generation_metrics import score


@pytest.mark.parametrize(
  "prediction, references, exact, f1",
  [
    ("The Cat!", ["a cat"], 1, 1),  # case, articles, punctuation
    ("cat", ["dog", "the cat."], 1, 1),  # the best reference
    ("the black cat sat", ["a cat sat down"], 0, 2 / 3),  # black cat sat | cat sat down
    ("cat cat cat", ["cat dog"], 0, 2 / 5),  # 1 of 3 and 1 of 2: common words count as often
    ("dog", ["cat"], 0, 0),
    ("", ["cat"], 0, 0),
    ("the", ["a"], 1, 1),  # both are empty
    ("theatre an-other", ["theatre another"], 1, 1),  # articles only as words
    ("big cat", ["cat", "big dog cat"], 0, 4 / 5),
  ],
)
def test_exact_match_and_f1(prediction, references, exact, f1):
  scores = score([prediction], [references])
  assert scores["exact_match"] == exact
  assert scores["f1"] == pytest.approx(f1, abs=1e-12)


def test_means_over_answers():
  scores = score(["cat", "dog", "cat dog"], [["cat"], ["cat"], ["cat"]])
  assert scores["exact_match"] == pytest.approx(1 / 3)
  assert scores["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_bleu():
  """The example of sacrebleu's README: 48.53; also with unequal numbers of references."""
  predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
  references = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
  ]
  assert score(predictions, references)["bleu"] == pytest.approx(48.530827, abs=1e-5)
  perfect = [own[: 1 + i % 2] for i, own in enumerate(references)]
  assert score([own[-1] for own in perfect], perfect)["bleu"] == pytest.approx(100)


def test_rouge():
  """The example of Lin (2004), which gives its ROUGE-2 and ROUGE-L."""
  reference = "police killed the gunman"
  scores = score(["police kill the gunman"], [[reference]])
  assert scores["rouge1"] == pytest.approx(3 / 4)
  assert scores["rouge2"] == pytest.approx(1 / 3)
  assert scores["rougeL"] == pytest.approx(3 / 4)
  other = score(["the gunman kill police"], [[reference, "no words"]])
  assert (other["rouge1"], other["rouge2"], other["rougeL"]) == pytest.approx((3 / 4, 1 / 3, 1 / 2))


def test_free_text():
  scores = score(["a b a b a b a", "c d"], [["x"], ["x"]])
  assert scores["distinct_1"] == pytest.approx(4 / 9)
  assert scores["distinct_2"] == pytest.approx(3 / 7)  # ab, ba, cd
  assert scores["distinct_3"] == pytest.approx(2 / 5)
  assert scores["repetition_4"] == pytest.approx(1 - 2 / 4)  # abab, baba; of the first text alone
  assert scores["longest_repeat"] == pytest.approx((5 + 0) / 2)  # a b a b a, from 1 and from 3
  assert scores["mean_words"] == pytest.approx(9 / 2)
  short = score(["", "word"], [["x"], ["x"]])
  assert not {"distinct_2", "repetition_4"} & set(short)
  assert (short["distinct_1"], short["longest_repeat"], short["mean_words"]) == (1, 0, 0.5)


@pytest.mark.parametrize(
  "text, words",
  [("a", 0), ("a a", 1), ("a b", 0), ("a b c x a b c y b c", 3), ("a a a a", 3), ("x a b y a b", 2)]
)  # fmt: skip
def test_longest_repeat(text, words):
  assert score([text], [["x"]])["longest_repeat"] == words


def test_missing_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
  with pytest.raises(UserError, match=r"sacrebleu.* pip install 'gptneo_jax\[eval\]'"):
    score(["a"], [["a"]])


def test_nothing_to_score():
  with pytest.raises(UserError, match="no answer"):
    score([], [])
