"""Greedy decoding against a loop of whole forward passes; rows of a batch that end apart."""

import jax
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=61,
  max_position_embeddings=96,
  hidden_size=24,
  num_layers=2,
  num_heads=2,
  window_size=8,
)


@pytest.fixture(scope="module")
def lm():
  lm = gptneo_jax.init(CONFIG)
  # Weights of this spread decide between tokens; the initial ones hardly do.
  lm.params = jax.tree.map(lambda p: p * 3, lm.params)
  return lm


def prompts_of(*lengths):
  chance = np.random.default_rng(0)
  return [chance.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def new_ids(lm, prompts, **options):
  made = lm.generate(prompts, **options)
  width = max(map(len, prompts))
  return [row[width : width + n].tolist() for row, n in zip(made.sequences, made.lengths)]


def test_greedy_is_the_argmax_of_whole_forward_passes(lm):
  (prompt,) = prompts_of(11)
  ids = list(prompt)
  for _ in range(20):
    ids.append(int(np.asarray(lm.logits([ids]))[0, -1].argmax()))
  new = new_ids(lm, [prompt], max_new_tokens=20)
  assert new == [ids[11:]]
  assert len(set(new[0])) > 3


def test_a_row_ends_at_the_end_id_and_others_continue(lm):
  prompts = prompts_of(5, 6)
  free = new_ids(lm, prompts, max_new_tokens=10)
  end = next(token for token in free[0][1:] if token not in free[1])
  stopped = new_ids(lm, prompts, max_new_tokens=10, eos_token_id=end)
  assert stopped == [free[0][: free[0].index(end) + 1], free[1]]
