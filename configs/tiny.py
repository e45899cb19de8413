"""The quick start: a small GPT-Neo on the Python standard library's source, in minutes on a CPU.

python -m gptneo_jax.train --config configs/tiny.py
"""

from configs import common
from gptneo_jax.config import ModelConfig


def get_config(arg=""):
  config = common.base(
    ModelConfig(
      vocab_size=2048,
      max_position_embeddings=256,
      hidden_size=192,
      num_layers=4,
      num_heads=4,
      window_size=64,
    )
  )
  config.steps, config.batch_size = 900, 8
  config.optimizer.update(learning_rate=3e-3)
  config.schedule.update(warmup_steps=50, decay_steps=900, floor=0.05)
  config.eval_every, config.checkpoint_every, config.log_every = 300, 300, 10
  config.data.update(source="stdlib", path="", tokenizer="train")
  config.eval.update(documents=0, batch_size=32, baselines=True, sample_tokens=128)
  return common.finish(config, arg)
