"""A small GPT-Neo, and weights with spread for any config."""

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import model_io
from gptneo_jax.config import ModelConfig

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
