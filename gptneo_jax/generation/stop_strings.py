"""Stop strings as an automaton over tokens: one look-up per token, on the device.

The automaton of Aho and Corasick over bytes, composed with the bytes of every token. A string is
found when it ends within the token just made, however its bytes fall into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gptneo_jax.errors import UserError


class StopTable(NamedTuple):
  """next_MxV: the state that a token leads to; hit_MxV: whether a stop string ends within it."""

  next_MxV: jax.Array | np.ndarray
  hit_MxV: jax.Array | np.ndarray

  def step(self, state_B: jax.Array, token_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each row stops at its token, and its next state."""
    next_B = self.next_MxV[state_B, token_B].astype(np.int32)
    return self.hit_MxV[state_B, token_B], next_B

  def after(self, ids: Sequence[int]) -> int:
    """The state behind a prompt: a stop string may begin in it, and is not looked for in it."""
    state = 0
    for i in ids:
      state = int(self.next_MxV[state, i])
    return state


def make_stop_table(stops: Sequence[str], token_bytes: Sequence[bytes]) -> StopTable:
  """The table for tokens of these bytes. Raises UserError for a string that no tokens spell."""
  patterns = [stop.encode() for stop in stops]
  next_Mx256, accepts_M = _automaton(patterns)
  M, V = len(next_Mx256), len(token_bytes)
  next_MxV = np.repeat(np.arange(M, dtype=np.int16)[:, None], V, axis=1)
  hit_MxV = np.zeros((M, V), bool)
  order = sorted(range(V), key=lambda i: -len(token_bytes[i]))
  longest = [token_bytes[i] for i in order]
  for place in range(len(longest[0])):
    # The tokens that have a byte at this place are the first so many.
    while longest and len(longest[-1]) <= place:
      longest.pop()
    ids = np.array(order[: len(longest)])
    byte_N = np.array([token[place] for token in longest])
    next_MxV[:, ids] = next_Mx256[next_MxV[:, ids], byte_N]
    hit_MxV[:, ids] |= accepts_M[next_MxV[:, ids]]
  for stop in stops:
    if not _spellable(stop.encode(), token_bytes):
      raise UserError(
        f"generate: the stop string {stop!r} can never match: no tokens of the model spell it"
      )
  return StopTable(next_MxV, hit_MxV)


def _automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Transitions, int16 M x 256, of the states (prefixes of patterns), and which accept."""
  prefixes = sorted({p[:n] for p in patterns for n in range(len(p) + 1)}, key=len)
  number = {prefix: i for i, prefix in enumerate(prefixes)}

  def longest_suffix(text: bytes) -> int:
    return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

  used = sorted(set(b"".join(patterns)))  # any other byte leads back to the start
  next_Mx256 = np.zeros((len(prefixes), 256), np.int16)
  for i, prefix in enumerate(prefixes):
    next_Mx256[i, used] = [longest_suffix(prefix + bytes([byte])) for byte in used]
  accepts_M = np.array([any(prefix.endswith(p) for p in patterns) for prefix in prefixes])
  return next_Mx256, accepts_M


def _spellable(stop: bytes, token_bytes: Sequence[bytes]) -> bool:
  """Whether some sequence of tokens contains these bytes."""
  whole = {token for token in token_bytes if token}
  if any(stop in token for token in whole):
    return True
  # Places of the string up to which tokens can spell it, the first having begun before it.
  reached = {n for n in range(1, len(stop)) if any(t.endswith(stop[:n]) for t in whole)} | {0}
  for place in range(len(stop)):
    if place not in reached:
      continue
    rest = stop[place:]
    if any(token.startswith(rest) for token in whole):
      return True
    reached |= {place + n for n in range(1, len(rest)) if rest[:n] in whole}
  return False
