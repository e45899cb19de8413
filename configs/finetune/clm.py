"""Continued pre-training: a language model on text of one's own, in rows of 512 tokens.

python -m gptneo_jax.train --config configs/finetune/clm.py \
  --config.data.path=news.txt --config.init_from=EleutherAI/gpt-neo-125m

txt (each line, paragraph or file a document: data.document), JSON, JSON lines, CSV, parquet; of a
`datasets` data set --config.data.source=datasets --config.data.path=NAME#SPLIT. A twentieth of the
documents validates. :lora and :qlora train factors of rank 8 instead. Expected figures:
experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("lm", arg)
  config.batch_size = 8
  config.data.update(document="line", validation_fraction=0.05)
  config.eval.sample_tokens = 64
  return config
