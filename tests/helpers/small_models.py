"""A small GPT-Neo, and models of any config with random weights, made without compiling `init`."""

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import model_io
from gptneo_jax.config import ModelConfig
from gptneo_jax.engine import LanguageModel

NEO = ModelConfig(
  vocab_size=61, max_position_embeddings=128, hidden_size=24, num_layers=4, num_heads=2,
  window_size=8, vocab_multiple=8,
)  # fmt: skip


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype),
    model_io.abstract_params(config, model_io.first_device()),
  )


def random_lm(config, tokenizer=None, scale=0.3, seed=0):
  """A language model on the first device; at scale 0 all tokens are equally likely."""
  mesh, rng = model_io.first_device(), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jax.device_put((scale * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(config, mesh),
  )
  lm = LanguageModel(model_io.LoadedModel(config, params), mesh)
  lm.tokenizer = tokenizer
  return lm
