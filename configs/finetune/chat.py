"""Conversations: messages of several turns, or any other records of instructions.

python -m gptneo_jax.train --config configs/finetune/chat.py \
  --config.data.path=conversations.jsonl --config.init_from=EleutherAI/gpt-neo-125m
python -m gptneo_jax.generate --checkpoint runs/chat --chat

A line of the file is {"messages": [{"role": "user", "content": …}, …]}, or another record that
docs/instructions.md lists. Every answer is learned; --config.examples.loss_on=last_turn learns the
last alone. Talks longer than a row lose their oldest turns. :lora and :qlora train factors of rank
8 instead.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("instruction", arg)
  config.seq_len, config.batch_size = 1024, 4
  config.data.on_too_long = "truncate_left"
  config.examples.template = "chat"
  return config
