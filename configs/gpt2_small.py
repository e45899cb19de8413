"""GPT-2 small (124M): the published architecture, with a recipe in the style of GPT-3's.

OpenAI did not publish how GPT-2 was trained; learning rate, betas, decay and batch are those of
GPT-3 Small (Brown et al. 2020, table 2.1 and appendix B), dropout 0 as in one-epoch training.

python -m gptneo_jax.train --config configs/gpt2_small.py
python -m gptneo_jax.train --config configs/gpt2_small.py:runlocal   # the same program on a laptop
"""

from gptneo_jax.config import PRESETS
from gptneo_jax.training import run_config


def get_config(arg=""):
  config = run_config.base(
    PRESETS["gpt2_small"].replace(embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0)
  )
  config.batch_size, config.steps = 512, 600_000  # 512 x 1024 = 524,288 tokens a step
  config.schedule.update(warmup_steps=2000, decay_steps=600_000)
  config.grad_accumulation, config.model.remat = 0, "auto"
  config.model.dtype = "bfloat16"
  config.model.vocab_multiple = 128
  config.eval_every, config.checkpoint_every, config.log_every = 1000, 1000, 20
  config.data.update(
    path="data/openwebtext/train/*.jsonl.zst",
    validation_path="data/openwebtext/val.jsonl.zst",
    tokenizer="openai-community/gpt2",
  )
  return run_config.finish(config, arg)
