"""Names of persons, places, products, … in a text (WNUT-17, emerging entities; 3,394 sentences).

python -m gptneo_jax.train --config configs/finetune/ner.py \
  --config.data.path=train.conll --config.data.validation_path=dev.conll \
  --config.data.test_path=test.conll --config.init_from=EleutherAI/gpt-neo-125m

:lora and :qlora train factors of rank 8 instead. Expected figures: experiments/README.md. Any file
of CoNLL's or JSON of tokens and labels, or of texts and spans, will do:
--config.data.columns=tokens=FIELD,labels=FIELD.
"""

from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.finetune("token_classification", arg, head="token_classification")
  config.seq_len, config.batch_size = 256, 4
  config.best_metric = "eval/f1"
  return config
