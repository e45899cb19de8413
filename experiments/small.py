"""What ablations change one thing of: a minute of a quiet CPU core.

0.67 million parameters, 600 steps of 4 x 256 tokens of the standard library's source. It stays as
it is, since the runs of runs.jsonl are of it.
"""

from gptneo_jax.config import ModelConfig
from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.base(
    ModelConfig(
      vocab_size=2048,
      max_position_embeddings=256,
      hidden_size=128,
      num_layers=2,
      num_heads=2,
      window_size=64,
    )
  )
  config.steps, config.batch_size = 600, 4
  config.optimizer.update(name="adamw", learning_rate=1e-3, b2=0.95, weight_decay=0.1)
  config.schedule.update(name="cosine", warmup_steps=40, decay_steps=600, floor=0.05)
  config.eval_every, config.checkpoint_every, config.log_every = 300, 0, 10
  config.data.update(source="stdlib", path="", tokenizer="train")
  config.eval.update(documents=0, batch_size=32, sample_tokens=0)
  return run_config.finish(config, arg)
