"""Conversations out of records: questions and answers, instructions, completions, messages.

Which of them a record is follows from its fields:

  question, answer · instruction, input (may be left out), output · prompt, completion
  messages: [{"role": "user", "content": …}, …] · conversations: [{"from": "human", "value": …}, …]

The first three may have a field `system` too, as messages may begin with one of that role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gptneo_jax.data import DataError
from gptneo_jax.errors import did_you_mean
from gptneo_jax.examples.records import Record

# The prompt's field and the answer's, of records of one turn.
PAIRS = {"question": "answer", "instruction": "output", "prompt": "completion"}
MESSAGES = "messages"

_ROLES = {
  "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip
_SPEAKS = (("role", "content"), ("from", "value"))  # keys of a message


class Turn(NamedTuple):
  """What the user says, and the answer.

  fields: texts that a template may ask for, by name. `message` is there always: all that the user
    says, an instruction and its input in two lines.
  answer: None where the model is to give it.
  """

  fields: dict[str, str]
  answer: str | None


class Conversation(NamedTuple):
  """Turns, of which all but the last have an answer, and what is said before them."""

  turns: tuple[Turn, ...]
  system: str = ""


def read(record: Record, *, labelled: bool) -> Conversation:
  """The conversation of a record, whose fields are named by role.

  labelled: False for a prompt without its answer, which is not read if it is there.
  Raises DataError with file and line.
  """
  try:
    return _read(record.fields, labelled)
  except ValueError as error:
    raise DataError(f"{record.location}: {error}") from None


def of_prompt(prompt: Any) -> Conversation:
  """What a caller asks: a text, the fields of a record, or messages of which the user's is last.

  Texts and messages are what the user says, whatever the field is called that a template has for
  it. Raises ValueError.
  """
  if isinstance(prompt, Mapping):
    return _read(prompt, labelled=False)
  if isinstance(prompt, str):
    turns, system = (Turn({"message": _text("the prompt", prompt)}, None),), ""
  else:
    turns, system = _of_messages(prompt, labelled=False)
  return Conversation(tuple(turn._replace(fields=_any_name(turn)) for turn in turns), system)


def _any_name(turn: Turn) -> dict[str, str]:
  return {**dict.fromkeys((*PAIRS, "message"), turn.fields["message"]), "input": ""}


def _read(fields: Mapping[str, Any], labelled: bool) -> Conversation:
  there = [name for name in PAIRS if name in fields]
  pairs = [name for name in there if PAIRS[name] in fields]
  kinds = pairs if pairs or labelled else there
  kinds += [MESSAGES] if MESSAGES in fields else []
  if len(kinds) != 1:
    there = ", ".join(fields) or "none"
    problem = f"{' and '.join(kinds)} are both there" if kinds else "no prompt with its answer"
    raise ValueError(
      f"{problem}; a record has question and answer, instruction and output, prompt and completion,"
      f" or messages. Its fields are: {there}; data.columns says what they are"
    )
  if kinds == [MESSAGES]:
    return _of_messages(fields[MESSAGES], labelled)
  system = fields.get("system") or ""
  if not isinstance(system, str):
    raise ValueError(f"system is {_shown(system)} and no text")
  return Conversation((_turn(fields, kinds[0], labelled),), system)


def _turn(fields: Mapping[str, Any], name: str, labelled: bool) -> Turn:
  texts = {key: value for key, value in fields.items() if isinstance(value, str)}
  texts["message"] = texts[name] = _text(name, fields[name])
  if name == "instruction":
    texts["input"] = given = fields.get("input") or ""
    if not isinstance(given, str):
      raise ValueError(f"input is {_shown(given)} and no text")
    if given.strip():
      texts["message"] = f"{texts[name]}\n{given}"
  answer = _text(PAIRS[name], fields[PAIRS[name]]) if labelled else None
  return Turn({key: text for key, text in texts.items() if key != PAIRS[name]}, answer)


def _of_messages(messages: Any, labelled: bool) -> Conversation:
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
    raise ValueError(f"messages are {_shown(messages)} and no list of them")
  said = [_message(number, message) for number, message in enumerate(messages, 1)]
  system = said.pop(0)[1] if said[0][0] == "system" else ""
  for number, (role, _) in enumerate(said):
    expected = ("user", "assistant")[number % 2]
    if role != expected:
      place = number + 1 + bool(system)
      raise ValueError(
        f"message {place} is the {role}'s, where the {expected}'s is due: roles alternate, and the"
        " user begins"
      )
  if not labelled and len(said) % 2 == 0:
    said = said[:-1]
  if not said or (labelled and len(said) % 2):
    raise ValueError("the last message is not the assistant's, so there is no answer to learn")
  texts = [text for _, text in said] + [None]
  turns = [Turn({"message": texts[i] or ""}, texts[i + 1]) for i in range(0, len(said), 2)]
  return Conversation(tuple(turns), system)


def _message(number: int, message: Any) -> tuple[str, str]:
  """Role and text."""
  keys = next(
    (keys for keys in _SPEAKS if isinstance(message, Mapping) and set(keys) <= message.keys()), None
  )
  if keys is None:
    raise ValueError(f"message {number} is {_shown(message)}; it has role and content")
  role = message[keys[0]]
  if role not in _ROLES:
    raise ValueError(
      f"message {number} has the role {role!r}{did_you_mean(str(role), tuple(_ROLES))}; roles are"
      " system, user and assistant"
    )
  return _ROLES[role], _text(f"message {number}, the {_ROLES[role]}'s,", message[keys[1]])


def _text(name: str, value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{name} is {_shown(value)} and no text")
  if not value.strip():
    raise ValueError(f"{name} is empty")
  return value


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:37]}…"
