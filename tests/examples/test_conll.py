"""Columns of words and tags, in the ways that they are found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.data import BadRecords, DataError
from gptneo_jax.examples import conll

UNER = """# newdoc id = batch-0000
# sent_id = 1
# text = # é
1\t#\tO\t-\t-
2\té\tB-LOC\t-\t-

# sent_id = 2
1\tfim\tO\t-\t-
"""
CONLL2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

# CD B-NP O
"""


def read(text: str, name="a.conll", policy="stop"):
  """[(line, tokens, labels)]"""
  found = conll.sentences(text.encode(), name, BadRecords(policy, quiet=True))
  return [
    (int(location.removeprefix(f"{name}:")), fields["tokens"], fields.get("labels"))
    for location, fields in found
  ]


@pytest.mark.parametrize(
  ("text", "sentences"),
  [
    ("a\tO\nb\tB-X\n\n\nc\tO", [(1, ["a", "b"], ["O", "B-X"]), (5, ["c"], ["O"])]),
    ("a\tO\r\nb b\tB-X\r\n \r\n#\tO\r\n", [(1, ["a", "b b"], ["O", "B-X"]), (4, ["#"], ["O"])]),
    ("# a comment\na b O\n", [(2, ["a"], ["O"])]),
    (UNER, [(4, ["#", "é"], ["O", "B-LOC"]), (8, ["fim"], ["O"])]),
    (CONLL2003, [(3, ["EU", "rejects"], ["I-ORG", "O"]), (6, ["#"], ["O"])]),
    ("the\tDET\ncat\tNOUN\n", [(1, ["the", "cat"], ["DET", "NOUN"])]),
    ("one\ntwo\n\nthree\n", [(1, ["one", "two"], None), (4, ["three"], None)]),
    ("1 O\n2 O\n", [(1, ["1", "2"], ["O", "O"])]),  # numbers that are tokens: nothing follows
    ("", []),
  ],
)
def test_sentences(text, sentences):
  assert read(text) == sentences


def test_other_columns_are_there_by_number():
  ((_, fields),) = conll.sentences(b"EU NNP B-ORG", "a.conll", BadRecords("stop"))
  assert fields == {
    "0": ["EU"], "1": ["NNP"], "2": ["B-ORG"], "tokens": ["EU"], "labels": ["B-ORG"]
  }  # fmt: skip


def test_a_line_of_another_form_is_named_and_its_sentence_skipped():
  text = "a\tO\n\nb\tO\nB-X\nc\tO\n\nd\tO\n"
  with pytest.raises(DataError, match=r"^a\.conll:4: 1 column in a file of 2; "):
    read(text)
  assert read(text, policy="skip") == [(1, ["a"], ["O"]), (7, ["d"], ["O"])]


@pytest.mark.parametrize("text", [UNER, CONLL2003, "a\tO\n", "# c\na\tB-X\n\nb\tI-X\n"])
def test_content_that_is_recognised(text):
  assert conll.looks_like(text.encode())


@pytest.mark.parametrize(
  "text",
  [
    "",
    "\n",
    "O\n",
    "ham\tOh well\n",
    "a text, of a line\n",
    "label\ttext\nO\tone two\n",
    "O\tone two\nO\tthree\n",
    "a\tO\nb\tc\n",
  ],
)
def test_content_that_is_not(text):
  assert not conll.looks_like(text.encode())


word = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Z", "C"]), min_size=1)
tags = st.sampled_from(["O", "B-PER", "I-PER", "S-LOC"])


@given(
  st.lists(st.lists(st.tuples(word, tags), min_size=1, max_size=4), min_size=1, max_size=4),
  st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read(sentences, line_end):
  text = line_end.join(
    "".join(f"{token}\t{tag}{line_end}" for token, tag in sentence) for sentence in sentences
  )
  numbered = all(token == str(n) for s in sentences for n, (token, _) in enumerate(s, 1))
  found = read(text)
  if not numbered:
    assert [list(zip(tokens, labels)) for _, tokens, labels in found] == sentences
