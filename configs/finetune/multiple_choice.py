"""A question and its choices, of which one is right: a score for each, softmax over the choices.

python -m gptneo_jax.train --config configs/finetune/multiple_choice.py \
  --config.data.path=ARC-Easy.jsonl --config.init_from=EleutherAI/gpt-neo-125m

Records with a question, any number of choices and the answer, as the hub has ARC; a table whose
choices are columns: --config.data.columns=question=FIELD,choices=A+B+C+D,answer=FIELD. GPT-2 may
train its double head: --config.model.head=double_heads. :lora and :qlora train factors of rank 8
instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("multiple_choice", arg, head="sequence_classification")
  config.epochs, config.batch_size, config.seq_len = 5.0, 4, 512
  config.data.on_too_long = "truncate_left"
  config.examples.lm_coefficient = 0.5
  config.best_metric = "eval/accuracy"
  return config
