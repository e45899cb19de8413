"""How similar two sentences are: a value for each pair, whose order does not matter.

python -m gptneo_jax.train --config configs/finetune/similarity.py \
  --config.data.path=train.csv --config.data.validation_path=dev.csv \
  --config.data.test_path=test.csv --config.init_from=EleutherAI/gpt-neo-125m

A table without header of sentence, sentence, score (0 to 5), as STS-B's. Both orders are read, and
what the head says of each is added (GPT-1, Radford et al. 2018, section 3.3). With a header:
--config.data.columns=first=FIELD,second=FIELD,label=FIELD. :lora and :qlora train factors of rank 8
instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("sentence_pairs", arg, head="sequence_classification")
  config.epochs, config.batch_size, config.seq_len = 10.0, 4, 256
  config.data.columns = "first=0,second=1,label=2"
  config.examples.update(problem="regression", both_orders=True)
  config.best_metric = "eval/spearman"
  return config
