"""A chatbot out of questions and answers: [{"question": …, "answer": …}, …], JSON, JSON lines, CSV.

python -m gptneo_jax.train --config configs/finetune/qa_pairs.py \
  --config.data.path=questions.json --config.init_from=EleutherAI/gpt-neo-125m
python -m gptneo_jax.generate --checkpoint runs/qa_pairs --chat

A model of ten million parameters takes --config.optimizer.learning_rate=1e-3, of a billion 1e-4.
:lora and :qlora train factors of rank 8 instead. Expected figures: docs/instructions.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("instruction", arg)
  # It is to know its answers, so it reads all of them many times, and nothing is held out.
  config.epochs, config.batch_size = 30.0, 2
  config.optimizer.learning_rate = 1e-3 if arg else 3e-4
  config.every_epoch, config.eval_every, config.checkpoint_every = False, 200, 0
  config.data.validation_fraction = 0.0
  config.eval.answers = 50
  return config
