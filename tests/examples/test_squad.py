"""SQuAD's JSON: a record for each question, and what is said of what is not as it has it."""

import pytest

from gptneo_jax.data import BadRecords, DataError
from gptneo_jax.examples import squad

ANSWER = {"text": "Paris", "answer_start": 0}
QUESTION = {"id": "q1", "question": "Where?", "answers": [ANSWER, ANSWER]}


def read(*paragraphs, policy="stop"):
  data = [{"title": "France", "paragraphs": list(paragraphs)}]
  assert squad.holds_questions(data)
  return list(squad.questions(data, "a.json", BadRecords(policy, quiet=True)))


def test_questions():
  impossible = {"id": 7, "question": "Why?", "answers": [], "is_impossible": True}
  unanswered = {"question": "Who?"}
  found = read({"context": "Paris it is.", "qas": [QUESTION, impossible, unanswered]})
  common = {"context": "Paris it is.", "title": "France"}
  answers = {"text": ["Paris", "Paris"], "answer_start": [0, 0]}
  assert found == [
    (
      "a.json: question q1",
      {"id": "q1", "question": "Where?", "answers": answers, "is_impossible": False, **common},
    ),
    (
      "a.json: question 7",
      {
        "id": "7",
        "question": "Why?",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": True,
        **common,
      },
    ),
    (
      "a.json: question 1.1.3",
      {"id": "", "question": "Who?", "is_impossible": False, **common},
    ),
  ]


@pytest.mark.parametrize(
  ("paragraph", "message"),
  [
    ({"qas": []}, "a.json: article 1, paragraph 2: no context"),
    ({"context": "c"}, "a.json: article 1, paragraph 2: no list of qas"),
    ({"context": "c", "qas": ["q"]}, "a.json: article 1, paragraph 2, question 1: not a question"),
    ({"context": "c", "qas": [{}]}, "a.json: article 1, paragraph 2, question 1: not a question"),
    (
      {"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]},
      "a.json: article 1, paragraph 2, question 1: not a question of SQuAD (`answers` is a list of",
    ),
  ],
)
def test_what_is_not_as_squad_has_it(paragraph, message):
  good = {"context": "Paris", "qas": [QUESTION]}
  with pytest.raises(DataError) as caught:
    read(good, paragraph)
  assert str(caught.value).startswith(message)
  assert len(read(good, paragraph, good, policy="skip")) == 2


def test_other_data():
  for data in (None, {}, [], [{"text": "a"}], ["paragraphs"]):
    assert not squad.holds_questions(data)
