"""The first quick start: AdamW at 1e-3, two layers, 4 x 256 tokens a step."""

from gptneo_jax.config import ModelConfig
from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.base(
    ModelConfig(
      vocab_size=2048,
      max_position_embeddings=256,
      hidden_size=192,
      num_layers=2,
      num_heads=3,
      window_size=64,
    )
  )
  config.steps, config.batch_size = 2400, 4
  config.optimizer.learning_rate = 1e-3
  config.schedule.update(warmup_steps=100, decay_steps=2400, floor=0.05)
  config.eval_every, config.checkpoint_every, config.log_every = 0, 0, 20
  config.data.update(source="stdlib", path="", tokenizer="train")
  config.eval.update(documents=0, batch_size=32, sample_tokens=0)
  return run_config.finish(config, arg)
