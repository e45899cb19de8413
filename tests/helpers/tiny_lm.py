"""A tiny random model with a tokenizer, and the log-probabilities that its logits give."""

import numpy as np

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.data.documents import Document
from tests.helpers.small_models import random_lm

TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=48, hidden_size=16, num_layers=2, num_heads=2,
  window_size=6,
)  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20
WORDS = TEXT.split()


def tiny_lm(scale=0.3, seed=3):
  """A random model; at scale 0 a uniform one. Its tokenizer is learnt from TEXT."""
  documents = [Document(TEXT, "", "here")]
  tokenizer = data.load_tokenizer("train", documents=documents, vocab_size=TINY.vocab_size)
  return random_lm(TINY, tokenizer, scale, seed)


def log_probabilities(lm, ids):
  """Of each next token, float64 T x V, from the engine's logits."""
  logits_TxV = np.asarray(lm.logits([ids]), np.float64)[0]
  shifted = logits_TxV - logits_TxV.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected_score(lm, context, targets):
  """(log-probability, all greedy) of targets after a context, truncated on the left."""
  ids = [*context, *targets][-(TINY.max_position_embeddings + 1) :]
  logprobs_NxV = log_probabilities(lm, ids[:-1])[-len(targets) :]
  greedy = bool((logprobs_NxV.argmax(-1) == targets).all())
  return logprobs_NxV[np.arange(len(targets)), targets].sum(), greedy
