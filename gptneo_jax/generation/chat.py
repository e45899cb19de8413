"""Chat with a model in the terminal: turns, the history that fits, commands.

A model that was fine-tuned on conversations gets them as its own template writes them, and ends its
answers; another one continues the text of a conversation up to where the user's turn begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from gptneo_jax.errors import UserError
from gptneo_jax.examples import instruction
from gptneo_jax.generation.stop_strings import beginning_at_end

FORMAT = "User: {message}\nAssistant:{answer}\n"
HELP = "/reset forgets what was said, /help shows this, Ctrl-D ends."

_NEW_TOKENS = 128  # new tokens of an answer by default


class Writing(Protocol):
  """How turns are written.

  stop: the stop string of an answer; '' where an answer ends with the end of text.
  """

  @property
  def stop(self) -> str: ...

  def prompt(self, lm: Any, past: Sequence[tuple[str, str]], message: str) -> list[int]:
    """Ids of (message, answer) pairs and a message, which the model is to continue."""
    ...

  def answer(self, text: str) -> str:
    """The answer in what the model has generated, which may go on."""
    ...


class Stored(NamedTuple):
  """As the model's own template has it, with which it was fine-tuned."""

  task: Any
  stop = ""

  def prompt(self, lm: Any, past: Sequence[tuple[str, str]], message: str) -> list[int]:
    answered = [pair for pair in past if pair[1].strip()]  # it learned from no empty answer
    said = [text for pair in answered for text in pair] + [message]
    roles = ("user", "assistant")
    return lm.prompt_ids([{"role": roles[n % 2], "content": text} for n, text in enumerate(said)])

  def answer(self, text: str) -> str:
    return instruction.answer_of(text, self.task)


class Format(NamedTuple):
  """The text of a turn: before the message, between message and answer, after the answer."""

  before: str
  between: str
  after: str

  @classmethod
  def parse(cls, text: str) -> Format:
    """Reads a text with {message} and {answer}; without {answer} an answer ends with its line.

    Raises UserError.
    """
    before, message, rest = text.replace("\\n", "\n").partition("{message}")
    between, answer, after = rest.partition("{answer}")
    if not message or not between:
      raise UserError(
        "--chat_format is a text with {message}, something after it, and {answer}; such as"
        f" {FORMAT!r}"
      )
    return cls(before, between, after if answer else "\n")

  @property
  def stop(self) -> str:
    """The stop string of an answer: the text between it and the next message."""
    following = self.after + self.before
    return following.rstrip() or following

  def prompt(
    self, lm: Any, past: Sequence[tuple[str, str]], message: str, lead: str = ""
  ) -> list[int]:
    """lead: what stands before all turns."""
    turns = [self.before + asked + self.between + said + self.after for asked, said in past]
    text = "".join([lead, *turns, self.before + message + self.between])
    return list(lm.tokenizer(text).input_ids)

  def answer(self, text: str) -> str:
    return text


def talk(lm: Any, turn: Writing, options: dict[str, Any], seed: int) -> None:
  """Reads messages and prints answers until the input ends. Raises UserError.

  Drops the oldest turns where not all fit into the model's positions.
  """
  if "max_length" in options:
    raise UserError(
      "--max_length counts the prompt, which grows with every turn of --chat; give --max_new_tokens"
    )
  limit = lm.config.max_position_embeddings
  room = options.get("max_new_tokens")
  if room is None:
    room = min(lm.generation_config.get("max_new_tokens", _NEW_TOKENS), limit // 2)
  stops = [*options.get("stop_strings", []), *([turn.stop] if turn.stop else [])]
  options = {**options, "stop_strings": stops or None, "max_new_tokens": room}
  ask = _asker(sys.stdin.isatty())
  past: list[tuple[str, str]] = []
  answers = 0
  while (message := ask()) is not None:
    command = message.strip()
    if command == "/help":
      print(HELP)
    elif command == "/reset":
      past = []
    elif command:
      ids = turn.prompt(lm, past, message)
      while past and len(ids) + room > limit:
        past = past[1:]
        ids = turn.prompt(lm, past, message)
      if len(ids) + room > limit:
        _complain(
          f"the message makes {len(ids)} tokens, and {limit - room} is the most; shorten it"
        )
        continue
      said = _answer(lm, ids, turn, {**options, "seed": seed + answers})
      past, answers = [*past, (message, said)], answers + 1


def _answer(lm: Any, ids: list[int], turn: Writing, options: dict[str, Any]) -> str:
  """Prints the answer as it is generated, up to the stop string; and returns it."""
  made, said, shown, stop = "", "", 0, turn.stop
  for piece in lm.stream([ids], **options):
    made += piece
    said = turn.answer(made)
    # What may be the beginning of the stop string is held back until it is known not to be.
    safe = max(shown, len(said) - beginning_at_end(said, stop))
    print(said[shown:safe], end="", flush=True)
    shown = safe
  said = said.partition(stop)[0] if stop else said
  print(said[shown:], flush=True)
  return said


def _complain(text: str) -> None:
  print(f"error: {text}", file=sys.stderr, flush=True)


def _asker(terminal: bool) -> Callable[[], str | None]:
  """A function that returns the next message, None at the end of the input."""

  def line() -> str | None:
    if terminal:
      return input("> ")
    read = sys.stdin.buffer.readline()
    return read.decode("utf-8-sig").rstrip("\r\n") if read else None

  def ask() -> str | None:
    while True:
      try:
        message = line()
        if message is not None:
          message.encode()  # bytes that are not text come from a terminal as surrogates
        return message
      except EOFError:
        print()
        return None
      except UnicodeError as error:
        _complain(f"that is no text in UTF-8: {error}")

  if terminal:
    print(f"Write a message. {HELP}")
  return ask
