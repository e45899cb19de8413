"""Instructions in Alpaca's form, {"instruction", "input", "output"}, JSON or JSON lines.

python -m gptneo_jax.train --config configs/finetune/instruct.py \
  --config.data.path=instruction-data.json --config.init_from=EleutherAI/gpt-neo-125m
python -m gptneo_jax.generate --checkpoint runs/instruct --prompt "What is the capital of France?"

The loss is on the answers alone. :lora and :qlora train factors of rank 8 instead. Expected
figures: docs/instructions.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("instruction", arg)
  config.batch_size = 4  # rows of 512 tokens, of some ten instructions each
  config.data.test_fraction = 0.1
  config.examples.template = "alpaca"
  return config
