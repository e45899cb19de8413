"""A tiny model with a tokenizer of its own, for tests that generate or score text."""

import jax
import numpy as np

from gptneo_jax import data, engine, model_io
from gptneo_jax.config import ModelConfig
from gptneo_jax.data.documents import Document

TINY = ModelConfig(
  vocab_size=280, max_position_embeddings=96, hidden_size=16, num_layers=2, num_heads=2,
  window_size=6,
)  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. ☂ é " * 20


def make_tokenizer():
  return data.load_tokenizer("train", documents=[Document(TEXT, "", "here")], vocab_size=280)


def make(config=TINY, seed=3, tokenizer=None):
  """A model at random, with weights of some spread, made without compiling `init`."""
  mesh, rng = model_io.first_device(), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(config, mesh),
  )
  lm = engine.LanguageModel(model_io.LoadedModel(config, params), mesh)
  if tokenizer is not None:
    lm.tokenizer = tokenizer
  return lm
