"""GPT-Neo 1.3B on the Pile: the released run, 380B tokens by step 362,000.

From GPT3_XL_pretrained.json (EleutherAI/gpt-neo, commit b53c6f0): bfloat16 activations, float32
weights, cosine to 10% at step 300,000 and constant after. Published: Pile 0.7527 bits per byte,
LAMBADA accuracy 57.23%. 1,048,576 tokens a step.

python -m gptneo_jax.train --config configs/neo_1p3b.py
python -m gptneo_jax.train --config configs/neo_1p3b.py:runlocal   # the same program on a laptop
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.neo(
    "neo_1p3b", learning_rate=2e-4, batch_size=512, steps=400_000, decay_steps=300_000
  )
  config.model.dtype = "bfloat16"
  return run_config.finish(config, arg)
