"""A LoRA adapter of a small GPT-Neo, and random factors."""

import numpy as np

from gptneo_jax.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=53, max_position_embeddings=32, hidden_size=16, num_layers=4, num_heads=2,
  window_size=4,
)  # fmt: skip


def draw(*shape, seed=0, scale=1.0):
  """Normal numbers of deviation `scale`, float32."""
  return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_adapter(scale=1.0) -> dict:
  """q everywhere, with ranks that differ between the layers of the period; out in one of them."""

  def pair(a, b, seed):
    factors = {
      "lora_a": draw(*a, seed=seed, scale=scale),
      "lora_b": draw(*b, seed=seed + 1, scale=scale),
    }
    return {**factors, "lora_scale": np.full(2, 2.0, np.float32)}

  first = {"q": pair((2, 16, 3), (2, 3, 2, 8), 0)}
  second = {
    "q": pair((2, 16, 2), (2, 2, 2, 8), 2),
    "out": pair((2, 2, 8, 3), (2, 3, 16), 4),
  }
  return {"blocks": {"layer_0": {"attn": first}, "layer_1": {"attn": second}}}
