"""What a client reads: texts as they grow, tokens with their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gptneo_jax.generation.continuous import Row
from gptneo_jax.generation.detokenization import TextStream, token_bytes
from gptneo_jax.generation.stop_strings import beginning_at_end

_CONTEXT = 16  # tokens of a prompt that the text after it may depend on
_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's API writes this


class AnswerText:
  """The text of a row, in pieces, up to the stop string that ends first: it is not part of it.

  What may be the beginning of a stop string is held back until it is known not to be.
  """

  def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str]):
    self._stream = TextStream(tokenizer, prompt[-_CONTEXT:])
    self._stops, self._made, self._shown = stops, "", 0
    self.stopped = False  # whether a stop string has been found

  def push(self, ids: Sequence[int], finished: bool) -> str:
    """The next piece; `ids` are all new ids so far."""
    self._made += self._stream.push(ids, finished)
    # The one that is complete first is what generation stops at.
    ends = [
      (place + len(stop), place) for stop in self._stops if (place := self._made.find(stop)) >= 0
    ]
    self.stopped, held = bool(ends), 0
    if not ends and not finished:
      held = max((beginning_at_end(self._made, stop) for stop in self._stops), default=0)
    end = min(ends)[1] if ends else len(self._made) - held
    end = max(self._shown, end)
    piece, self._shown = self._made[self._shown : end], end
    return piece


class Tokens:
  """How tokens are written: as text, or as their bytes where these are no whole characters."""

  def __init__(self, tokenizer: Any, vocab_size: int):
    spelled = token_bytes(tokenizer)[:vocab_size]
    self._bytes = spelled + [b""] * (vocab_size - len(spelled))

  def text(self, i: int) -> str:
    try:
      return self._bytes[i].decode()
    except UnicodeDecodeError:
      return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._bytes[i])

  def spelled(self, i: int) -> bytes:
    return self._bytes[i]


class Scored:
  """A token and the likeliest ones in its place; None for a first token, which nothing predicts."""

  def __init__(self, i: int, logprob: float | None, alternatives: Sequence[tuple[int, float]]):
    self.id, self.logprob, self.alternatives = i, logprob, alternatives


def scored_prompt(row: Row, alternatives: int) -> list[Scored]:
  """The tokens of a prompt. Waits for the device."""
  scored = [Scored(row.prompt[0], None, ())]
  for part, count in row.prompt_logprobs:
    arrays = jax.tree.map(np.asarray, part)
    for n in range(count):
      one = jax.tree.map(lambda x, n=n: x[n], arrays)
      scored.append(_scored(row.prompt[len(scored)], one, alternatives))
  return scored


def scored_new(row: Row, first: int, end: int, alternatives: int) -> list[Scored]:
  return [_scored(row.new[n], row.logprobs[n], alternatives) for n in range(first, end)]


def _scored(i: int, one: Any, alternatives: int) -> Scored:
  best = zip(one.id_NxK[:alternatives].tolist(), one.top_NxK[:alternatives].tolist())
  return Scored(i, _finite(float(one.logprob_N)), [(j, _finite(x)) for j, x in best])


def _finite(logprob: float) -> float:
  return max(logprob, _LEAST_LOGPROB)


def completion_logprobs(tokens: Tokens, scored: Sequence[Scored], offset: int) -> dict[str, Any]:
  """The form of /v1/completions. offset: characters before the first token.

  The token itself is among its alternatives, if any are asked for, with the same float as its own
  log-probability: lm-eval takes it as the greedy one where it equals the largest.
  """
  texts = [tokens.text(one.id) for one in scored]
  offsets = np.cumsum([offset, *map(len, texts)])[:-1].tolist()
  return {
    "tokens": texts,
    "token_logprobs": [one.logprob for one in scored],
    "top_logprobs": [_alternatives(tokens, one) for one in scored],
    "text_offset": offsets,
  }


def _alternatives(tokens: Tokens, one: Scored) -> dict[str, float] | None:
  if one.logprob is None:
    return None
  best = {tokens.text(i): logprob for i, logprob in reversed(one.alternatives)}
  return best | {tokens.text(one.id): one.logprob}


def chat_logprobs(tokens: Tokens, scored: Sequence[Scored]) -> dict[str, Any]:
  """The form of /v1/chat/completions."""

  def entry(i: int, logprob: float | None) -> dict[str, Any]:
    return {"token": tokens.text(i), "logprob": logprob, "bytes": list(tokens.spelled(i))}

  return {
    "content": [
      entry(one.id, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.alternatives]}
      for one in scored
    ]
  }


def finish_reason(ended: str, stopped: bool) -> str:
  """ended: of a Row. stopped: of its text."""
  return "length" if ended == "length" and not stopped else "stop"


def usage(prompts: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
  """Tokens that were read and made. prompts: one row of each prompt."""
  prompt, new = sum(len(row.prompt) for row in prompts), sum(len(row.new) for row in rows)
  return {
    "prompt_tokens": prompt,
    "completion_tokens": new,
    "total_tokens": prompt + new,
    "prompt_tokens_details": {"cached_tokens": sum(row.reused for row in prompts)},
  }
