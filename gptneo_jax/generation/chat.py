"""A talk with a model in the terminal: turns, what is kept of them, commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from gptneo_jax.errors import UserError

FORMAT = "User: {message}\nAssistant:{answer}\n"
HELP = "/reset forgets what was said, /help shows this, Ctrl-D ends."

_ROOM = 128  # new tokens of an answer, unless it is said otherwise


class Format(NamedTuple):
  """How a turn is put to the model: before, the message, between, the answer, after."""

  before: str
  between: str
  after: str

  @classmethod
  def parse(cls, text: str) -> Format:
    """Of a text with {message} and, unless the answer ends with its line, {answer}. Raises
    UserError."""
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
    """What an answer ends with: what stands between it and the next message."""
    following = self.after + self.before
    return following.rstrip() or following


def talk(lm: Any, shape: Format, options: dict[str, Any], seed: int) -> None:
  """Reads messages and prints answers until the input ends. Raises UserError.

  The oldest turns are dropped where all do not fit the model's positions.
  """
  if "max_length" in options:
    raise UserError(
      "--max_length counts the prompt, which grows with every turn of --chat; give --max_new_tokens"
    )
  limit = lm.config.max_position_embeddings
  room = options.get("max_new_tokens")
  if room is None:
    room = min(lm.generation_config.get("max_new_tokens", _ROOM), limit // 2)
  stops = [*options.get("stop_strings", []), *([shape.stop] if shape.stop else [])]
  options = {**options, "stop_strings": stops or None, "max_new_tokens": room}
  ask = _asker(sys.stdin.isatty())
  past: list[str] = []  # message, answer, message, …
  turn = 0
  while (message := ask()) is not None:
    command = message.strip()
    if command == "/help":
      print(HELP)
    elif command == "/reset":
      past = []
    elif command:
      kept = [*past, shape.before + message + shape.between]
      while len(kept) > 1 and _tokens(lm, kept) + room > limit:
        kept = kept[2:]
      if (tokens := _tokens(lm, kept)) + room > limit:
        _complain(f"the message makes {tokens} tokens, and {limit - room} is the most; shorten it")
        continue
      said = _answer(lm, "".join(kept), shape.stop, {**options, "seed": seed + turn})
      past, turn = [*kept, said + shape.after], turn + 1


def _answer(lm: Any, prompt: str, stop: str, options: dict[str, Any]) -> str:
  """Prints what the model says as it is made, up to the stop string; and returns it."""
  said, shown = "", 0
  for piece in lm.stream(prompt, **options):
    said += piece
    # What may become the next turn's beginning is not shown before it is known not to.
    safe = max(shown, len(said) - _held(said, stop))
    print(said[shown:safe], end="", flush=True)
    shown = safe
  said = said.partition(stop)[0] if stop else said
  print(said[shown:], flush=True)
  return said


def _held(text: str, stop: str) -> int:
  """How much of the end of `text` may be the beginning of `stop`."""
  return next((n for n in range(len(stop), 0, -1) if text.endswith(stop[:n])), 0)


def _tokens(lm: Any, past: list[str]) -> int:
  return len(lm.tokenizer("".join(past)).input_ids)


def _complain(text: str) -> None:
  print(f"error: {text}", file=sys.stderr, flush=True)


def _asker(terminal: bool) -> Callable[[], str | None]:
  """What gives the next message, None at the end of the input."""

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
          message.encode()  # a terminal's bytes that are no text come as surrogates
        return message
      except EOFError:
        print()
        return None
      except UnicodeError as error:
        _complain(f"that is no text in UTF-8: {error}")

  if terminal:
    print(f"Write a message. {HELP}")
  return ask
