"""Normalised words and the hashes of their n-grams, against plain loops."""

import numpy as np

from gptneo_jax.evals.word_ngrams import ngrams, normalised, split_words
from tests.helpers.plain_words import words


def test_normalised():
  assert normalised(" The  end—(of \tit)!\x00 ") == "the endof it"
  assert normalised("--- !") == ""
  every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
  once = normalised(" ".join(every))
  assert once == " ".join(words(" ".join(every)))
  assert normalised(once) == once  # parts of long documents are normalised twice


def test_ngrams_of_several_texts():
  """None spans two texts; equal words have equal hashes."""
  words = split_words(["A b, c", "", "x", "b c d"])
  assert words.text == "a b c x b c d"
  two = ngrams(words, 2)
  found = [words.text[start:end] for start, end in zip(two.starts_G, two.ends_G)]
  assert found == ["a b", "b c", "b c", "c d"]
  assert [words.text_at(start) for start in two.starts_G] == [0, 0, 3, 3]
  assert two.hashes_G[1] == two.hashes_G[2] and len(np.unique(two.hashes_G)) == 3
  assert len(ngrams(words, 4).hashes_G) == 0
