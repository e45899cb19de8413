"""Questions with reference answers, from a JSONL file:

  {"prompt": "Q: Who wrote Hamlet?\\nA:", "reference": ["Shakespeare", "William Shakespeare"],
   "category": "books", "stop": "\\n"}

`reference` is a text or a list of texts, of which the best match counts. Optional are `category`,
`stop` (one or several strings that end an answer) and `prediction` (an answer that is given and not
generated). Other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from gptneo_jax.errors import UserError


class Question(NamedTuple):
  location: str  # 'file:line'
  prompt: str
  references: tuple[str, ...]  # at least one
  category: str | None
  prediction: str | None
  stop_strings: tuple[str, ...]


def read(path: str) -> Iterator[Question]:
  """The questions of a file. Raises UserError for a bad record, with its file and line."""
  try:
    with open(path, "rb") as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield _question(line, f"{path}:{number}")
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _question(line: bytes, location: str) -> Question:
  try:
    record = json.loads(line.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{location}: not JSON: {error}") from None
  if not isinstance(record, dict):
    raise UserError(f'{location}: not an object with "prompt" and "reference"')
  prompt, category, prediction = (record.get(name) for name in ("prompt", "category", "prediction"))
  references, stop_strings = _texts(record.get("reference")), _texts(record.get("stop", []))
  if not isinstance(prompt, str) or not prompt:
    raise UserError(f'{location}: "prompt" is missing, empty or not a text')
  if not references:
    raise UserError(f'{location}: "reference" is missing, or neither a text nor a list of texts')
  for name, value in (("category", category), ("prediction", prediction)):
    if value is not None and not isinstance(value, str):
      raise UserError(f'{location}: "{name}" is not a text')
  if stop_strings is None or "" in stop_strings:
    raise UserError(f'{location}: "stop" is neither a text nor a list of texts, none of them empty')
  for text in (prompt, category, prediction, *references, *stop_strings):
    try:
      (text or "").encode()
    except UnicodeEncodeError as error:  # "\ud800" passes as JSON, but no tokenizer takes it
      raise UserError(f"{location}: not valid text: {error.reason}") from None
  return Question(
    location=location, prompt=prompt, references=references, category=category,
    prediction=prediction, stop_strings=stop_strings,
  )  # fmt: skip


def _texts(value: Any) -> tuple[str, ...] | None:
  """A text or a list of texts, as a tuple; None if it is neither."""
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    return None
  return tuple(texts)
