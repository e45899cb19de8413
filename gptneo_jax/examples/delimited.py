"""Two texts as one sequence: start, first, delimiter, second, extract, as in GPT-1.

The head reads the extract token, which has seen both. Source: Radford et al. 2018, section 3.3.
"""

from __future__ import annotations

import numpy as np

from gptneo_jax.examples.task_file import TaskSpec

TOKENS = {"start": "<|start|>", "delimiter": "<|delimiter|>", "extract": "<|extract|>"}


def sequence(first: np.ndarray, second: np.ndarray, spec: TaskSpec) -> np.ndarray:
  """Ids of both, with the special tokens; int32. Longer ones are cut by `cut`."""
  start, delimiter, extract = (np.array([spec.tokens[role]], np.int32) for role in TOKENS)
  return np.concatenate([start, first, delimiter, second, extract])


def cut(first: np.ndarray, second: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
  """The ends of both, together with the special tokens at most `most` tokens: the longer one loses
  first."""
  room = most - len(TOKENS)
  over = len(first) + len(second) - room
  if over <= 0:
    return first, second
  long, short = max(len(first), len(second)), min(len(first), len(second))
  of_long = min(over, long - short)
  of_long += (over - of_long + 1) // 2
  of_short = over - of_long
  of_first, of_second = (of_long, of_short) if len(first) >= len(second) else (of_short, of_long)
  return first[of_first:], second[of_second:]
