"""c001 with every matrix from normal(0.02), in fewer steps."""

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
      window_size=16,
      initializer="hf",
    )
  )
  config.steps, config.batch_size = 160, 8
  config.optimizer.update(name="muon", learning_rate=8e-3, rates="attn/q/=0.125")
  config.schedule.update(warmup_steps=16, decay_steps=160, floor=0.0)
  config.eval_every, config.checkpoint_every, config.log_every = 0, 0, 20
  config.data.update(source="stdlib", path="", tokenizer="train")
  config.eval.update(documents=0, batch_size=32, sample_tokens=0)
  return run_config.finish(config, arg)
