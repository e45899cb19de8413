"""How a conversation is written: the same ids in training and in use.

Prompt and answer are encoded apart and their ids joined, so no token spans the seam between them,
whatever the texts are. An answer ends with the end of text. Spaces that a template has right before
the answer are encoded with the answer, where GPT-2's tokens have them: 'Answer:' + ' Paris', not
'Answer: ' + 'Paris'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptneo_jax.data import DocumentEncoder
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.examples.conversations import Conversation

_FIELD = re.compile(r"\{(\w+)\}")
_WHOLE = ("message", "instruction", "question", "prompt")  # all that the user says, in one turn


class Template(NamedTuple):
  """Texts with fields in braces.

  turn: a turn up to its answer.
  lead: spaces before the answer, encoded with it.
  after: between an answer's end of text and the next turn.
  with_input: in place of `turn` where the field `input` is not empty; '': `turn` it is.
  system: before the first turn, if the conversation has such a text.
  """

  turn: str
  lead: str = ""
  after: str = ""
  with_input: str = ""
  system: str = "{system}\n"

  @classmethod
  def parse(cls, text: str) -> Template:
    r"""A template by its name, or out of a text such as 'Question: {question}\nAnswer: {answer}'.

    In a text \n is a new line. Without {answer} the answer follows the text, after a space unless
    the text ends in white space. {message} is all that the user says, in records of any kind.
    Raises UserError.
    """
    if text in NAMED:
      return NAMED[text]
    text = text.replace("\\n", "\n")
    turn, answer, after = text.partition("{answer}")
    if "{answer}" in after or not _FIELD.search(turn):
      raise UserError(
        f"template is {text!r}{did_you_mean(text, tuple(NAMED))}; it is one of {', '.join(NAMED)},"
        r" or a text such as 'Question: {question}\nAnswer: {answer}'"
      )
    if not answer and not turn[-1].isspace():
      turn += " "
    bare = turn.rstrip(" ")
    return cls(bare, lead=turn[len(bare) :], after=after)

  def prompts(self, conversation: Conversation) -> Iterator[str]:
    """What stands before each answer. Raises ValueError for a field that is not there."""
    for number, turn in enumerate(conversation.turns):
      text = self.turn
      if self.with_input and turn.fields.get("input", "").strip():
        text = self.with_input
      fields = turn.fields
      if self in NAMED.values():  # made for any record
        fields = {"instruction": fields["message"], **fields}
      before = self.after if number else ""
      if number == 0 and conversation.system:
        before = _filled(self.system, {"system": conversation.system})
      yield before + _filled(text, fields)

  def jinja(self) -> str:
    """The same as transformers' chat templates write it, for messages. Raises ValueError.

    The text is encoded as one there. With 'chat' the ids are the same, unless a text spells a
    special token; with other templates also where no white space stands beside a seam.
    """
    names = _FIELD.findall(self.turn)
    if len(names) != 1 or names[0] not in _WHOLE:
      raise ValueError(f"the template has the fields {', '.join(names)}, and messages have no such")
    before, _, between = self.turn.partition(f"{{{names[0]}}}")
    system = [json.dumps(part) for part in self.system.split("{system}")]
    before, between, lead, after = map(json.dumps, (before, between, self.lead, self.after))
    return "".join([
      "{% for message in messages %}",
      "{% if message['role'] == 'system' %}",
      f"{{{{ {system[0]} + message['content'] + {system[1]} }}}}",
      "{% elif message['role'] == 'user' %}",
      f"{{{{ {before} + message['content'] }}}}",
      "{% elif message['role'] == 'assistant' %}",
      f"{{{{ {between} + {lead} + message['content'] + eos_token }}}}",
      f"{{% if not loop.last %}}{{{{ {after} }}}}{{% endif %}}",
      "{% endif %}",
      "{% endfor %}",
      f"{{% if add_generation_prompt %}}{{{{ {between} }}}}{{% endif %}}",
    ])  # fmt: skip


_ALPACA = (
  "Below is an instruction that describes a task{paired}. Write a response that appropriately"
  " completes the request.\n\n### Instruction:\n{{instruction}}\n\n{given}### Response:\n"
)
NAMED = {
  "plain": Template("{message}\n"),
  # Source: tatsu-lab/stanford_alpaca (train.py).
  "alpaca": Template(
    _ALPACA.format(paired="", given=""),
    with_input=_ALPACA.format(
      paired=", paired with an input that provides further context",
      given="### Input:\n{input}\n\n",
    ),
    system="{system}\n\n",
  ),
  "chat": Template("User: {message}\nAssistant:", lead=" ", system="System: {system}\n"),
}


def encode(
  template: Template, conversations: Sequence[Conversation], encoder: DocumentEncoder
) -> list[list[np.ndarray]]:
  """Ids of each conversation's parts: prompt, answer, prompt, answer, …; answers with their end.

  Raises ValueError for a field that a conversation does not have; DataError for a text without ids.
  """
  texts, parts = [], []
  for conversation in conversations:
    first = len(texts)
    for prompt, turn in zip(template.prompts(conversation), conversation.turns):
      texts += [prompt] if turn.answer is None else [prompt, template.lead + turn.answer]
    parts.append(range(first, len(texts)))
  ids, end = encoder.encode(texts), np.array([encoder.end_of_text], np.int32)
  return [
    [np.append(ids[n], end) if place % 2 else ids[n] for place, n in enumerate(numbers)]
    for numbers in parts
  ]


def fitted(
  template: Template, conversation: Conversation, encoder: DocumentEncoder, most: int
) -> list[np.ndarray]:
  """The parts of one conversation, without its oldest turns where these make it too long.

  The last turn stays, however long it is. Raises as `encode`.
  """
  while True:
    (parts,) = encode(template, [conversation], encoder)
    if sum(map(len, parts)) <= most or len(conversation.turns) == 1:
      return parts
    conversation = conversation._replace(turns=conversation.turns[1:])


def _filled(text: str, fields: dict[str, str]) -> str:
  """The text with its fields; what stands in braces in a field stays as it is."""

  def value(match: re.Match) -> str:
    name = match[1]
    if name not in fields:
      there = ", ".join(fields)
      raise ValueError(
        f"the template asks for {{{name}}}{did_you_mean(name, tuple(fields))}; there is {there}"
      )
    return fields[name]

  return _FIELD.sub(value, text)
