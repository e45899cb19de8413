"""Any number of labels for a text: the intents of NLU++ (Casanueva et al. 2022), 48 of them.

python -m gptneo_jax.train --config configs/finetune/multilabel.py \
  --config.data.path=train.json --config.data.test_path=test.json \
  --config.init_from=EleutherAI/gpt-neo-125m

Records with a text and a list of labels (intents; absent where there are none). Each label is
learned as a yes or no of its own; f1 counts all decisions alike, f1_macro all labels. :lora and
:qlora train factors of rank 8 instead. Expected figures: experiments/README.md.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("sequence_classification", arg, head="sequence_classification")
  config.epochs, config.batch_size, config.seq_len = 20.0, 4, 256
  config.examples.problem = "multi_label_classification"
  config.best_metric = "eval/f1"
  return config
