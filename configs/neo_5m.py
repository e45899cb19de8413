"""5.2 million parameters and 20 million tokens, for a machine without an accelerator.

python -m gptneo_jax.train --config configs/neo_5m.py --config.data.path='FOLDER/*.jsonl.zst' \\
  --config.data.validation_path=FILE.jsonl.zst

20 million tokens are an epoch of 60 MB of text, from which the tokenizer is learned too. The recipe
is the quick start's, with a lower rate for a longer run; no run of it is recorded yet.
"""

from gptneo_jax.config import ModelConfig
from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.base(
    ModelConfig(
      vocab_size=8192,
      max_position_embeddings=512,
      hidden_size=256,
      num_layers=4,
      num_heads=4,
      window_size=64,
      initializer="hf",
    )
  )
  config.steps, config.batch_size = 4800, 8
  config.optimizer.update(name="muon", learning_rate=5e-3)
  config.optimizer.rates = "attn/q/=0.125"  # 1 / sqrt(64): the attention scale that GPT-Neo has not
  config.schedule.update(warmup_steps=100, decay_steps=4800, floor=0.0)
  config.eval_every, config.checkpoint_every, config.log_every = 600, 300, 20
  config.data.update(path="data/pile/train/*.jsonl.zst", validation_path="data/pile/val.jsonl.zst")
  config.data.tokenizer = "train"
  config.eval.update(batch_size=16, sample_tokens=128)
  return run_config.finish(config, arg)
