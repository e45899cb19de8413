"""What a customer wants, one of many labels: Banking77 (Casanueva et al. 2020), 77 intents.

python -m gptneo_jax.train --config configs/finetune/intents.py \
  --config.data.path=train.csv --config.data.test_path=test.csv \
  --config.init_from=EleutherAI/gpt-neo-125m

A table with the columns text and category; of another one,
--config.data.columns=text=FIELD,label=FIELD says which they are. :lora and :qlora train factors of
rank 8 instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("sequence_classification", arg, head="sequence_classification")
  config.epochs, config.batch_size, config.seq_len = 10.0, 4, 256
  config.best_metric = "eval/accuracy"
  return config
