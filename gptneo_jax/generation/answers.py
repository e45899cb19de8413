"""Greedy answers to many prompts, those of similar length together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_BATCH = 16  # prompts at once


def greedy(
  lm: Any,
  prompts: Sequence[Sequence[int]],
  new_tokens: Sequence[int],
  stop: Callable[[], bool] = lambda: False,
) -> list[str] | None:
  """The text that a model adds to each prompt of ids; None if `stop` said so first.

  new_tokens: the most for each, as far as the model has positions. Options of the model's
  generation_config do not apply, but for its end of text.
  """
  texts = [""] * len(prompts)
  order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
  for first in range(0, len(order), _BATCH):
    if stop():
      return None
    batch = order[first : first + _BATCH]
    room = lm.config.max_position_embeddings - max(len(prompts[n]) for n in batch)
    made = lm.generate(
      [list(prompts[n]) for n in batch],
      max_new_tokens=max(1, min(max(new_tokens[n] for n in batch), room)),
      do_sample=False, num_beams=1, num_return_sequences=1,
    )  # fmt: skip
    for n, text in zip(batch, made.texts):
      texts[n] = text
  return texts
