"""What a body asks for, and what becomes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from gptneo_jax.generation.continuous import Row, Wanted
from gptneo_jax.generation.decode import GenerationRequest


class Update(NamedTuple):
  """A row has `count` new tokens, and has ended or not (Row.ended)."""

  number: int
  row: Row
  count: int
  ended: str


class Job(NamedTuple):
  """What a body asks for.

  prompts: ids of each. texts: what `echo` repeats. rows: a request for each continuation, those of
  a prompt one after another, `each` of them; the best `n` are returned.
  """

  body: Any
  prompts: list[list[int]]
  texts: list[str]
  rows: list[GenerationRequest]
  wanted: Wanted
  each: int
  n: int
  stops: list[str]
  echo: bool
