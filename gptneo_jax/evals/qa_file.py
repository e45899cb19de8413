"""Questions with reference answers, from a file of one JSON object a line:

  {"prompt": "Q: Who wrote Hamlet?\\nA:", "reference": ["Shakespeare", "William Shakespeare"],
   "category": "books", "stop": "\\n"}

`reference` is a text or several, of which the best counts; `category` and `stop` (texts that end an
answer) may be left out; with a "prediction" nothing is generated. Other fields are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from gptneo_jax.errors import UserError


class Question(NamedTuple):
  where: str  # 'file:line'
  prompt: str
  references: tuple[str, ...]  # one at least
  category: str | None
  prediction: str | None
  stops: tuple[str, ...]


def read(path: str) -> Iterator[Question]:
  """The questions of a file. Raises UserError for a bad record, naming file and line."""
  try:
    with open(path, "rb") as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield _question(line, f"{path}:{number}")
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _question(line: bytes, where: str) -> Question:
  try:
    record = json.loads(line.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where}: not JSON: {error}") from None
  if not isinstance(record, dict):
    raise UserError(f'{where}: not an object with "prompt" and "reference"')
  prompt, category, prediction = (record.get(name) for name in ("prompt", "category", "prediction"))
  references, stops = _texts(record.get("reference")), _texts(record.get("stop", []))
  if not isinstance(prompt, str) or not prompt:
    raise UserError(f'{where}: "prompt" is missing, empty or not a text')
  if not references:
    raise UserError(f'{where}: "reference" is missing, or neither a text nor a list of texts')
  for name, value in (("category", category), ("prediction", prediction)):
    if value is not None and not isinstance(value, str):
      raise UserError(f'{where}: "{name}" is not a text')
  if stops is None or "" in stops:
    raise UserError(f'{where}: "stop" is neither a text nor a list of texts, none of them empty')
  for text in (prompt, category, prediction, *references, *stops):
    try:
      (text or "").encode()
    except UnicodeEncodeError as error:  # "\ud800" passes as JSON, but no tokenizer takes it
      raise UserError(f"{where}: not valid text: {error.reason}") from None
  return Question(where, prompt, references, category, prediction, stops)


def _texts(value: Any) -> tuple[str, ...] | None:
  """A text or a list of them; None if it is neither."""
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    return None
  return tuple(texts)
