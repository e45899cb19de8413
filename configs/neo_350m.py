"""GPT-Neo 350M on the Pile: 300B tokens in 572,300 steps of 256 x 2048.

The released weights were withdrawn and no config was published: learning rate, schedule and batch
are those of the nearest development config (gpt3_medium_256), without its weight decay; the
attention pattern is that of its siblings.

python -m gptneo_jax.train --config configs/neo_350m.py
python -m gptneo_jax.train --config configs/neo_350m.py:runlocal   # the same program on a laptop
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.neo(
    "neo_350m", learning_rate=3e-4, batch_size=256, steps=572_300, decay_steps=572_300
  )
  return run_config.finish(config, arg)
