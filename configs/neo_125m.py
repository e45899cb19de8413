"""GPT-Neo 125M on the Pile: 300B tokens in 572,300 steps of 256 x 2048.

No config of the released run was published: learning rate, schedule and batch are those of the
nearest development config (gpt3_small_256), without its weight decay, which the maintainers advise
against (EleutherAI/gpt-neo #166).

python -m gptneo_jax.train --config configs/neo_125m.py
python -m gptneo_jax.train --config configs/neo_125m.py:runlocal   # the same program on a laptop
"""

from configs import common


def get_config(arg=""):
  config = common.neo(
    "neo_125m", learning_rate=6e-4, batch_size=256, steps=572_300, decay_steps=572_300
  )
  return common.finish(config, arg)
