"""GPT-Neo 125M on the Pile: 300B tokens in 572,300 steps of 256 x 2048.

No config of the released run was published: learning rate, schedule and batch are those of the
nearest development config (gpt3_small_256), without its weight decay, which the maintainers advise
against (EleutherAI/gpt-neo #166).

python -m gptneo_jax.train --config configs/neo_125m.py
python -m gptneo_jax.train --config configs/neo_125m.py:runlocal   # the same program on a laptop
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.neo(
    "neo_125m", learning_rate=6e-4, batch_size=256, steps=572_300, decay_steps=572_300
  )
  return run_config.finish(config, arg)
