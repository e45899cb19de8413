"""Spam or not: the SMS Spam Collection (UCI, 5,574 messages; LABEL<TAB>TEXT, no header).

python -m gptneo_jax.train --config configs/finetune/spam.py \
  --config.data.path=sms_spam.tsv --config.init_from=EleutherAI/gpt-neo-125m

:lora and :qlora train factors of rank 8 instead. Expected figures: experiments/README.md. With
another file: --config.data.columns=text=FIELD,label=FIELD.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("sequence_classification", arg, head="sequence_classification")
  config.seq_len, config.batch_size = 512, 2  # some 35 messages a step
  config.data.update(columns="label=0,text=1", validation_fraction=0.1, test_fraction=0.2)
  config.data.on_too_long = "truncate_left"
  config.best_metric = "eval/accuracy"
  return config
