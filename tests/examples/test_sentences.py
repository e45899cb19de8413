"""Records of token classification in their forms, and what is wrong with them."""

import json

import pytest

from gptneo_jax.data import DataError
from gptneo_jax.examples import sentences
from gptneo_jax.examples.records import Record


def read(*fields, names=(), labelled=True):
  records = [Record(one, f"f:{n}") for n, one in enumerate(fields, 1)]
  return sentences.read(records, names, labelled=labelled)


def test_tokens_with_tags():
  (one,) = read({"tokens": ["EU", "rejects"], "labels": ["B-ORG", "O"]})
  assert one.words == ("EU", "rejects") and one.labels == ("B-ORG", "O")
  assert one.pieces() == [" EU", " rejects"]


def test_tokens_and_tags_as_one_text_each():
  (one,) = read({"tokens": "EU rejects", "labels": "B-ORG O"})
  assert one.words == ("EU", "rejects") and one.labels == ("B-ORG", "O")


def test_class_numbers_have_names():
  (one,) = read({"tokens": ["a", "b"], "labels": [1, 0]}, names=("O", "B-X", "I-X"))
  assert one.labels == ("B-X", "O")


def test_schemes_become_iob2():
  first, second = read(
    {"tokens": list("abcd"), "labels": ["S-X", "B-X", "E-X", "O"]},
    {"tokens": list("abc"), "labels": ["I-X", "B-X", "I-Y"]},
  )
  assert first.labels == ("B-X", "B-X", "I-X", "O")
  assert second.labels == ("B-X", "B-X", "B-Y")


def test_labels_that_are_no_tags_stay():
  (one,) = read({"tokens": ["Ele", "vai"], "labels": ["PRON", "VERB"]})
  assert one.labels == ("PRON", "VERB")


TEXT = "Ola, call me at 9 p.m. ok?"


@pytest.mark.parametrize(
  "entities",
  [
    [{"start": 16, "end": 22, "label": "time"}],
    [{"span": [16, 22], "type": "time"}],
    {"time": {"text": "9 p.m.", "span": [16, 22], "value": 9}},
  ],
)
def test_a_text_with_spans(entities):
  (one,) = read({"text": TEXT, "entities": entities})
  assert one.words == ("Ola", ",", "call", "me", "at", "9", "p", ".", "m", ".", "ok", "?")
  assert one.labels == ("O",) * 5 + ("B-time", *("I-time",) * 4, "O", "O")
  assert one.words_of(sentences.iob.Entity("time", 5, 10)) == "9 p.m."
  assert one.pieces()[:3] == [" Ola", ",", " call"]


def test_a_text_without_entities_has_none():
  (one,) = read({"text": "a b"})
  assert one.labels == ("O", "O")


def test_labels_are_not_read_where_none_are_needed():
  (one,) = read({"tokens": ["a"], "labels": 3}, labelled=False)
  assert one.labels is None


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"tokens": ["a", "b"], "labels": ["O"]}, "2 tokens and 1 labels"),
    ({"tokens": ["a", ""], "labels": ["O", "O"]}, "token 2 is empty"),
    ({"tokens": 3, "labels": []}, "tokens are 3, not a list of texts"),
    ({"tokens": ["a"]}, "no labels; data.columns=labels=FIELD says"),
    ({"tokens": "['a']", "labels": "['O']"}, "neither a list nor words with spaces"),
    ({"tokens": ["a"], "labels": 3}, "labels are 3, neither a list"),
    ({"tokens": ["a"], "labels": [1]}, "labels are class numbers, such as 1; say their names"),
    ({"tokens": ["a"], "labels": [0.5]}, "the label 0.5 is neither a text nor a class number"),
    ({}, "no tokens and no text"),
    ({"text": "ab", "entities": [{"span": [0, 3], "label": "X"}]}, "0 to 3, and the text has 2"),
    ({"text": "a  b", "entities": [{"span": [1, 2], "label": "X"}]}, "at 1 to 2 has no word"),
    ({"text": "ab", "entities": [{"start": 0}]}, "has not the form"),
    ({"text": "ab", "entities": ["X"]}, "has not the form"),
    ({"text": "ab", "entities": [{"start": "0", "end": 1, "label": "X"}]}, "no whole numbers"),
    ({"text": "a b", "entities": {"X": {"span": [0, 3]}, "Y": {"span": [2, 3]}}}, "'X' and 'Y' o"),
    ({"tokens": ["a", "b"], "labels": ["B-X", "PER"]}, "'PER' is neither O nor a tag such as 'B-"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said(fields, message):
  with pytest.raises(DataError, match=f"^f:1: .*{message}"):
    read(fields)


def test_a_class_number_outside_the_names():
  with pytest.raises(DataError, match="f:1: the label 3 is none of the 2 classes"):
    read({"tokens": ["a"], "labels": [3]}, names=("O", "B-X"))


def test_slots_of_the_bank(shared_data):
  path = shared_data / "tasks/classification/nlupp_banking_en/train.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  records = [
    Record({"text": one["text"], "entities": one.get("slots")}, f"f:{n}")
    for n, one in enumerate(content)
  ]
  read = sentences.read(records)
  assert len(read) == 1867
  for one, record in zip(read, content):
    slots = sorted(record.get("slots", {}).items(), key=lambda item: item[1]["span"])
    entities = sentences.iob.entities(one.labels)
    assert [entity.type for entity in entities] == [name for name, _ in slots]
    for entity, (_, slot) in zip(entities, slots):
      text = slot["text"]
      assert one.words_of(entity) in (text, f"{text}ish")  # a word has one label
