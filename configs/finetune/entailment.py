"""Whether one sentence follows from another: pairs with labels, in their order.

python -m gptneo_jax.train --config configs/finetune/entailment.py \
  --config.data.path=train.csv --config.data.validation_path=val.csv \
  --config.data.test_path=test.csv --config.init_from=EleutherAI/gpt-neo-125m

A table with premise, hypothesis and label, such as InferBR's (Portuguese; 0 contradiction, 1
entailment, 2 neutral). Other pairs: --config.data.columns=first=FIELD,second=FIELD,label=FIELD, as
first=passage,second=question,label=answer of BoolQ, whose passages are long: --config.seq_len=1024
--config.data.on_too_long=truncate_left. As GPT-1 had it (Radford et al. 2018): start,
first, delimiter, second, extract, and half the language model's loss beside the labels'. :lora and
:qlora train factors of rank 8 instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("sentence_pairs", arg, head="sequence_classification")
  config.epochs, config.batch_size, config.seq_len = 5.0, 4, 256
  config.examples.lm_coefficient = 0.5
  config.best_metric = "eval/accuracy"
  return config
