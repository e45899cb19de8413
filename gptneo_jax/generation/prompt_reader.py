"""Reads a prompt in pieces, so that others can have their turn in between."""

from __future__ import annotations

import numpy as np

from gptneo_jax.axes import round_up
from gptneo_jax.generation import decode
from gptneo_jax.generation.kv_cache import KVCache
from gptneo_jax.generation.slots import Slots
from gptneo_jax.generation.token_logprobs import TokenLogprobs


class PromptReader:
  """A prompt that is read into a cache of one row: all but its last token, which a step runs.

  kept: a cache that holds the first kept_tokens of the prompt.
  logprobs: how the tokens after the first are predicted, in parts, if `scored`; each part with how
    many tokens it has before its padding.
  """

  def __init__(
    self, slots: Slots, prompt: list[int], *, scored: bool, kept: KVCache | None, kept_tokens: int
  ):
    self._slots, self._prompt, self._scored = slots, prompt, scored
    self._read, self._end = kept_tokens, len(prompt) - 1
    self.logprobs: list[tuple[TokenLogprobs, int]] = []
    # Up to the end of the last piece, which is padded.
    columns = kept_tokens + round_up(self._end - kept_tokens, decode.CHUNKS[-1])
    self.cache = slots.empty_row(columns) if kept is None else slots.row_like(kept, columns)

  @property
  def finished(self) -> bool:
    return self._read == self._end

  def read(self) -> int:
    """Reads the next piece, and returns how many tokens it has."""
    column, prompt = self._read, self._prompt
    chunk_1xT, count = decode.prompt_chunk(np.array([prompt[column : self._end]], np.int32))
    if self._scored:
      next_T = np.zeros(chunk_1xT.shape[1], np.int32)
      next_T[:count] = prompt[column + 1 : column + 1 + count]
      self.cache, scores = self._slots.read_and_score(self.cache, chunk_1xT, next_T, column, count)
      self.logprobs.append((scores, count))
    else:
      self.cache = self._slots.read(self.cache, chunk_1xT, column, count)
    self._read += count
    return count
