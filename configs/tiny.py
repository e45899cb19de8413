"""The quick start: a small GPT-Neo on the Python standard library's source, in minutes on a CPU.

python -m gptneo_jax.train --config configs/tiny.py

1.3 million parameters, one global and one local layer, 1.2 million tokens: less than half of the
files, once. The packages held out are those that data/text_files.py names. Expected figures, and
what was tried: experiments/README.md.
"""

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
  config.steps, config.batch_size = 600, 8
  config.optimizer.update(name="muon", learning_rate=8e-3)
  config.optimizer.rates = "attn/q/=0.125"  # 1 / sqrt(64): the attention scale that GPT-Neo has not
  config.schedule.update(warmup_steps=40, decay_steps=600, floor=0.0)
  config.eval_every, config.checkpoint_every, config.log_every = 300, 300, 20
  config.data.update(source="stdlib", path="", tokenizer="train")
  config.eval.update(documents=0, batch_size=32, baselines=True, sample_tokens=128)
  config.eval.sample_prompt = "import os\n\nclass "
  return run_config.finish(config, arg)
