"""What becomes of examples that are longer than the model is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from gptneo_jax.data import DataError
from gptneo_jax.examples.task_file import TaskSpec

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class TooLong:
  """Counts them, and ends the encoding of a file in one line where they are refused."""

  def __init__(self, spec: TaskSpec):
    self._spec = spec
    self._found: list[tuple[str, int]] = []

  def keeps(self, location: str, tokens: int, *, most: int | None = None) -> bool:
    """Whether an example of so many tokens is to be made, cut where it is longer than a row.

    most: tokens that it may have, if those are not spec.max_tokens.
    """
    if tokens <= (self._spec.max_tokens if most is None else most):
      return True
    self._found.append((location, tokens))
    return self._spec.on_too_long == "truncate_left"

  def finish(self, examples: Sequence[Item]) -> list[Item]:
    """The examples. Raises DataError if there were some that are too long, and none may be."""
    if self._found:
      location, tokens = self._found[0]
      most = max(tokens for _, tokens in self._found)
      text = (
        f"{location}: {tokens} tokens are more than seq_len {self._spec.max_tokens} allows;"
        f" {len(self._found)} such example(s), the longest of {most}"
      )
      if self._spec.on_too_long == "stop":
        raise DataError(f"{text}; raise seq_len, or set data.on_too_long to truncate_left or drop")
      done = {"drop": "left out", "truncate_left": "cut at the left"}[self._spec.on_too_long]
      logger.warning("%s: %s", text, done)
    return list(examples)
