"""Messages of a chat as the ids that a model is to continue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.examples import conversations, instruction
from gptneo_jax.generation import chat

_log = logging.getLogger(__name__)


class ChatPrompts:
  """The template that was stored with the checkpoint; a plain one where there is none.

  stops: strings that end an answer.
  """

  def __init__(self, lm: LanguageModel):
    self._lm = lm
    self._format = None if lm.has_template else chat.Format.parse(chat.FORMAT)
    self.stops = [] if self._format is None else [self._format.stop]
    if self._format is not None:
      _log.warning(
        "the model brings no template, so a chat is written as %r; fine-tune it on conversations"
        " for answers", chat.FORMAT,
      )  # fmt: skip

  def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Raises UserError for messages that do not alternate, or whose last is not the user's."""
    if messages[-1]["role"] != "user":
      raise UserError("the last message is not the user's, so there is nothing to answer")
    if self._format is None:
      return self._lm.prompt_ids(list(messages))
    with user_errors():
      turns, system = conversations.of_prompt(list(messages))
    past = [(turn.fields["message"], f" {turn.answer}") for turn in turns[:-1]]
    lead = f"{system}\n" if system else ""
    return self._format.prompt(self._lm, past, turns[-1].fields["message"], lead)

  def answer(self, text: str) -> str:
    """The answer in what the model has generated, which may go on."""
    task: Any = self._lm.task
    return text.removeprefix(" ") if self._format else instruction.answer_of(text, task)
