"""Conversations out of records of every form, and what is wrong with some."""

import pytest

from gptneo_jax.data import DataError
from gptneo_jax.examples import conversations
from gptneo_jax.examples.records import Record


def read(fields, labelled=True):
  return conversations.read(Record(fields, "data.json:7"), labelled=labelled)


def said(conversation):
  """System, then what is said in turns."""
  turns = [(turn.fields["message"], turn.answer) for turn in conversation.turns]
  return conversation.system, [text for turn in turns for text in turn]


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"question": "Q", "answer": "A", "choices": ["A", "B"]}, ["Q", "A"]),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, ["Add.\n1 2", "3"]),
    ({"instruction": "Add.", "input": "", "output": "3"}, ["Add.", "3"]),
    ({"instruction": "Add.", "output": "3"}, ["Add.", "3"]),
    ({"prompt": "P ", "completion": " C"}, ["P ", " C"]),
    ({"question": "Q", "answer": "A", "prompt": "no pair"}, ["Q", "A"]),
  ],
)
def test_records_of_one_turn(fields, expected):
  assert said(read(fields)) == ("", expected)
  assert said(read(fields, labelled=False)) == ("", [expected[0], None])


def test_messages():
  roles = ("system", "user", "assistant", "user", "assistant")
  texts = ("S", "a", "b", "c", "d")
  ours = [{"role": role, "content": text} for role, text in zip(roles, texts)]
  names = {"user": "human", "assistant": "gpt", "system": "system"}
  theirs = [{"from": names[role], "value": text} for role, text in zip(roles, texts)]
  for messages in (ours, theirs):
    assert said(read({"messages": messages})) == ("S", ["a", "b", "c", "d"])
    assert said(read({"messages": messages[1:]})) == ("", ["a", "b", "c", "d"])
    assert said(read({"messages": messages}, labelled=False)) == ("S", ["a", "b", "c", None])
    assert said(conversations.of_prompt(messages[:-1])) == ("S", ["a", "b", "c", None])


def test_fields_for_templates():
  turn = read({"instruction": "Add.", "output": "3", "system": "S", "title": "T", "n": 1}).turns[0]
  assert turn.fields == {
    "instruction": "Add.", "input": "", "message": "Add.", "system": "S", "title": "T",
  }  # fmt: skip
  asked = conversations.of_prompt("Q").turns[0].fields
  assert {asked[name] for name in ("question", "instruction", "prompt", "message")} == {"Q"}
  assert conversations.of_prompt({"question": "Q"}).turns[0].fields["question"] == "Q"


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"q": "Q", "a": "A"}, "no prompt with its answer; a record has .* Its fields are: q, a;"),
    ({"question": "Q", "output": "A"}, "no prompt with its answer"),
    (
      {"question": "Q", "answer": "A", "prompt": "P", "completion": "C"},
      "question and prompt are both there; .* Its fields are: question, answer, prompt, completion",
    ),
    ({"question": "Q", "answer": ""}, "answer is empty"),
    ({"question": "Q", "answer": " \n"}, "answer is empty"),
    ({"question": "", "answer": "A"}, "question is empty"),
    ({"question": "Q", "answer": None}, "answer is None and no text"),
    ({"question": "Q", "answer": ["A"]}, r"answer is \['A'\] and no text"),
    ({"instruction": "I", "input": 3, "output": "O"}, "input is 3 and no text"),
    ({"messages": []}, r"messages are \[\] and no list"),
    ({"messages": "hi"}, "messages are 'hi' and no list"),
    ({"messages": ["hi"]}, "message 1 is 'hi'; it has role and content"),
    (
      {"messages": [{"role": "usr", "content": "a"}]},
      "message 1 has the role 'usr'; did you mean user",
    ),
    ({"messages": [{"role": "user", "content": "a"}]}, "the last message is not the assistant's"),
    ({"messages": [{"role": "system", "content": "a"}]}, "the last message is not the assistant's"),
    (
      {"messages": [{"role": "user", "content": "a"}] * 2},
      "message 2 is the user's, where the assistant's is due: roles alternate",
    ),
    (
      {"messages": [{"from": "system", "value": "S"}, {"from": "gpt", "value": "a"}]},
      "message 2 is the assistant's, where the user's is due",
    ),
    (
      {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
      "message 2, the assistant's, is empty",
    ),
  ],
)
def test_what_is_no_conversation(fields, message):
  with pytest.raises(DataError, match=f"^data.json:7: {message}"):
    read(fields)
