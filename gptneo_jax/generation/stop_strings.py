"""Stop strings as an automaton over tokens: one table look-up per token, on the device.

The Aho-Corasick automaton over bytes, composed with the bytes of every token. A string is found in
the token within which it ends, however its bytes are split into tokens.

Letters of this module: Q states of the automaton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gptneo_jax.errors import UserError


class StopTable(NamedTuple):
  """next_QxV: the state after a token; hit_QxV: whether a stop string ends within the token."""

  next_QxV: jax.Array | np.ndarray
  hit_QxV: jax.Array | np.ndarray

  def step(self, state_B: jax.Array, token_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a stop string ends within each row's token, and the next states."""
    next_B = self.next_QxV[state_B, token_B].astype(np.int32)
    return self.hit_QxV[state_B, token_B], next_B

  def after(self, ids: Sequence[int]) -> int:
    """The state after a prompt: a match may start in the prompt but must end in new text."""
    state = 0
    for i in ids:
      state = int(self.next_QxV[state, i])
    return state


def beginning_at_end(text: str, stop: str) -> int:
  """The length of the longest end of `text` that `stop` begins with: it may become the stop."""
  return next((n for n in range(len(stop), 0, -1) if text.endswith(stop[:n])), 0)


def make_stop_table(stops: Sequence[str], token_bytes: Sequence[bytes]) -> StopTable:
  """The table for a vocabulary, given the bytes of each token.

  Raises UserError for a string that no sequence of tokens contains.
  """
  patterns = [stop.encode() for stop in stops]
  next_Qx256, accepts_Q = _automaton(patterns)
  Q, V = len(next_Qx256), len(token_bytes)
  next_QxV = np.repeat(np.arange(Q, dtype=np.int16)[:, None], V, axis=1)
  hit_QxV = np.zeros((Q, V), bool)
  order = sorted(range(V), key=lambda i: -len(token_bytes[i]))
  longest = [token_bytes[i] for i in order]
  for place in range(len(longest[0])):
    # The tokens that have a byte at this place are the longest: the first of the list.
    while longest and len(longest[-1]) <= place:
      longest.pop()
    ids = np.array(order[: len(longest)])
    byte_N = np.array([token[place] for token in longest])
    next_QxV[:, ids] = next_Qx256[next_QxV[:, ids], byte_N]
    hit_QxV[:, ids] |= accepts_Q[next_QxV[:, ids]]
  for stop in stops:
    if not _spellable(stop.encode(), token_bytes):
      raise UserError(
        f"generate: the stop string {stop!r} can never match: no tokens of the model spell it"
      )
  return StopTable(next_QxV, hit_QxV)


def _automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Transitions, int16 Q x 256, of the states (the prefixes of patterns), and which accept."""
  prefixes = sorted({p[:n] for p in patterns for n in range(len(p) + 1)}, key=len)
  number = {prefix: i for i, prefix in enumerate(prefixes)}

  def longest_suffix(text: bytes) -> int:
    return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

  used = sorted(set(b"".join(patterns)))  # after any other byte the state is 0
  next_Qx256 = np.zeros((len(prefixes), 256), np.int16)
  for i, prefix in enumerate(prefixes):
    next_Qx256[i, used] = [longest_suffix(prefix + bytes([byte])) for byte in used]
  accepts_Q = np.array([any(prefix.endswith(p) for p in patterns) for prefix in prefixes])
  return next_Qx256, accepts_Q


def _spellable(stop: bytes, token_bytes: Sequence[bytes]) -> bool:
  """Whether some sequence of tokens contains these bytes."""
  distinct = {token for token in token_bytes if token}
  if any(stop in token for token in distinct):
    return True
  # Lengths of its beginnings that some tokens end with; the first token may begin before it.
  reached = {n for n in range(1, len(stop)) if any(t.endswith(stop[:n]) for t in distinct)} | {0}
  for place in range(len(stop)):
    if place not in reached:
      continue
    rest = stop[place:]
    if any(token.startswith(rest) for token in distinct):
      return True
    reached |= {place + n for n in range(1, len(rest)) if rest[:n] in distinct}
  return False
