"""Instructions and conversations: a language model learns to give the answers.

An example is a conversation as `templates` writes it, without its last id: each token's target is
the one after it. What counts of the loss, examples.loss_on: 'answer' (each answer and its end of
text), 'last_turn' (the last answer alone), 'all' (the prompts too).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptneo_jax.data import DataError, DocumentEncoder
from gptneo_jax.errors import did_you_mean, user_errors
from gptneo_jax.examples import conversations, templates
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.conversations import Conversation
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.examples.templates import Template
from gptneo_jax.examples.too_long import TooLong

LOSS_ON = ("answer", "all", "last_turn")

ROLES: tuple[Role, ...] = (
  *(Role(name, needed="never") for pair in conversations.PAIRS.items() for name in pair),
  Role("input", needed="never"),
  Role(conversations.MESSAGES, ("conversations",), needed="never"),
  Role("system", needed="never"),
)
OUTPUTS = ""


def layout(spec: TaskSpec) -> dict[str, Column]:
  return {"targets": Column("token", np.int32), "weights": Column("token", np.float32)}


def key(record: Record) -> str:
  """The prompt: all that comes before the last answer. Raises DataError."""
  conversation = conversations.read(record, labelled=True)
  said = [
    [turn.fields["message"], turn.answer] if number else turn.fields["message"]
    for number, turn in enumerate(reversed(conversation.turns))
  ]
  return json.dumps([conversation.system, *said], ensure_ascii=False)


def settle(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """The spec as it is, after a look at its settings. Raises UserError."""
  template_of(spec)
  loss_on = spec.settings["loss_on"]
  if loss_on not in LOSS_ON:
    raise DataError(
      f"examples.loss_on is {loss_on!r}{did_you_mean(loss_on, LOSS_ON)}; it is one of"
      f" {', '.join(LOSS_ON)}"
    )
  if spec.settings.get("lm_coefficient"):
    raise DataError(
      "examples.lm_coefficient is of a language model beside labels; examples.loss_on=all learns"
      " the prompts too"
    )
  return spec


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return {}


def template_of(spec: TaskSpec) -> Template:
  """Raises UserError."""
  return Template.parse(spec.settings["template"])


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  """Where a prompt is to be cut, whole turns go before a part of the last one does."""
  template, long = template_of(spec), TooLong(spec)
  read = [_readable(record, template, labelled=labelled) for record in records]
  examples = []
  for number, parts in enumerate(templates.encode(template, read, encoder)):
    location, length = records[number].location, sum(map(len, parts)) - labelled
    if labelled and len(parts[-1]) > spec.max_tokens and spec.on_too_long == "truncate_left":
      raise DataError(
        f"{location}: the answer alone has {len(parts[-1])} tokens, more than the"
        f" {spec.max_tokens} of seq_len; data.on_too_long=drop leaves such examples out"
      )
    if not long.keeps(location, length):
      continue
    if length > spec.max_tokens:
      parts = _cut(template, read[number], encoder, spec.max_tokens + labelled)
    examples.append(_example(parts, spec, number, location, labelled))
  return long.finish(examples)


def prompt_ids(prompt: Any, spec: TaskSpec, encoder: DocumentEncoder) -> np.ndarray:
  """What the model is to continue, int32: of a text, a record's fields, or messages.

  Raises UserError.
  """
  with user_errors():
    conversation = conversations.of_prompt(prompt)
    (parts,) = templates.encode(template_of(spec), [conversation], encoder)
  return np.concatenate(parts)


def answer_of(text: str, spec: TaskSpec) -> str:
  """The answer in what the model generated after a prompt: without the template's spaces."""
  lead = len(template_of(spec).lead)
  return text[:lead].lstrip(" ") + text[lead:]


def predictions(
  outputs: Sequence[Any], examples: Sequence[Example], spec: TaskSpec
) -> list[dict[str, Any]]:
  """outputs: what the model generated after each example, as texts."""
  return [{"answer": answer_of(text, spec)} for text in outputs]


def metrics(
  predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
) -> dict[str, float]:
  """exact_match: the share of the answers that are given word for word."""
  right = [
    prediction["answer"] == conversations.read(record, labelled=True).turns[-1].answer
    for prediction, record in zip(predictions, records)
  ]
  return {"exact_match": sum(right) / len(right)}


def _readable(record: Record, template: Template, *, labelled: bool) -> Conversation:
  """The conversation of a record. Raises DataError, also where the template cannot write it."""
  conversation = conversations.read(record, labelled=labelled)
  try:
    list(template.prompts(conversation))
  except ValueError as error:
    raise DataError(f"{record.location}: {error}") from None
  return conversation


def _cut(
  template: Template, conversation: Conversation, encoder: DocumentEncoder, most: int
) -> list[np.ndarray]:
  """At most so many ids: without the oldest turns, then without the last prompt's beginning."""
  parts = templates.fitted(template, conversation, encoder, most)
  last = (len(parts) - 1) // 2 * 2  # the prompt, which its answer follows if it is there
  parts[last] = parts[last][max(0, sum(map(len, parts)) - most) :]
  return parts


def _example(
  parts: list[np.ndarray], spec: TaskSpec, number: int, location: str, labelled: bool
) -> Example:
  """extra: how many ids come before the last answer."""
  ids = np.concatenate(parts)
  if not labelled:
    return Example((ids,), record=number, location=location, extra=len(ids))
  numbers = np.arange(len(parts))
  counted = {"all": numbers >= 0, "answer": numbers % 2, "last_turn": numbers == numbers[-1]}
  weights = np.repeat(counted[spec.settings["loss_on"]], [len(part) for part in parts])
  return Example(
    (ids[:-1],),
    tokens={"targets": (ids[1:],), "weights": (weights[1:].astype(np.float32),)},
    record=number,
    location=location,
    extra=len(ids) - len(parts[-1]),
  )
