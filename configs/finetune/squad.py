"""Answers as spans of a context (SQuAD v1.1 and v2.0; XQuAD in English, 1,190 questions).

python -m gptneo_jax.train --config configs/finetune/squad.py \
  --config.data.path=train-v2.0.json --config.data.validation_path=dev-v2.0.json \
  --config.init_from=EleutherAI/gpt-neo-125m

Where the file has questions without an answer, examples.no_answer_threshold decides when none is
given; each evaluation says which would be the best. :lora and :qlora train factors of rank 8
instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("question_answering", arg, head="question_answering")
  config.seq_len, config.batch_size = 512, 8
  config.best_metric = "eval/f1"
  return config
