"""GPT-Neo 2.7B on the Pile: the released run, 420B tokens in 400,000 steps.

From GPT3_2-7B_pretrained.json (EleutherAI/gpt-neo, commit b53c6f0), cosine to 10% at step 300,000
and constant after. The original computed in float32; set --config.model.dtype=float32 for that.
Published: Pile 0.7165 bits per byte, LAMBADA accuracy 62.22%. 1,048,576 tokens a step.
The table has 50304 rows: at 50257 TPU's compiler (libtpu 0.0.42) dies for v5p:2x2x1. To continue
from converted weights, which have no such rows: --config.model.vocab_multiple=1.

python -m gptneo_jax.train --config configs/neo_2p7b.py
python -m gptneo_jax.train --config configs/neo_2p7b.py:runlocal   # the same program on a laptop
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.neo(
    "neo_2p7b", learning_rate=1.6e-4, batch_size=512, steps=400_000, decay_steps=300_000
  )
  config.model.dtype = "bfloat16"
  config.model.vocab_multiple = 128
  return run_config.finish(config, arg)
