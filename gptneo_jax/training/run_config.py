"""What every training config starts from: all keys, their defaults, and how to shrink for a laptop.

A config file defines `get_config(arg)`, which changes what `base` or `neo` gives; `arg` is what
follows the colon in `--config configs/neo_1p3b.py:runlocal`. Any key can be set after it:
`--config.optimizer.b2=0.99`. A key that is not here is an error, in a file as on the command line.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.errors import UserError, did_you_mean


def base(model: ModelConfig) -> ConfigDict:
  """The defaults, locked. Lengths are in tokens, batches in sequences, intervals in steps."""
  config = ConfigDict()
  config.task = "lm"
  config.seed = 0
  config.steps = 1000
  config.epochs = 0.0  # passes over the data, in place of `steps`; 0: steps count
  config.batch_size = 8  # sequences, over all devices
  config.seq_len = model.max_position_embeddings
  config.grad_accumulation = 1  # parts that the batch is taken in; 0: as few as fit the devices
  config.z_loss = 0.0
  config.init_from = ""  # weights to start from: a run, RUN/STEP, a Hugging Face folder or hub id
  config.adopt_model = False  # True: the model is that of init_from, whatever model.* says of it
  config.random_weights = False  # True: of init_from only the model and the tokenizer are taken
  config.frozen = ""  # regular expression: parameters whose path it matches do not learn
  config.neftune_alpha = 0.0  # noise on the embeddings in training (arXiv:2310.05914); 0: none
  config.label_smoothing = 0.0

  config.log_every = 10
  config.eval_every = 500  # 0: only at the end
  config.checkpoint_every = 500
  config.every_epoch = False  # True: evaluates and saves after each epoch, not by the two above
  config.keep_latest = 3  # checkpoints kept; the one of the best best_metric is kept beside them
  config.keep_every_hours = 24.0  # and one of each so many hours is kept for good; 0: none
  config.on_failed_save = "continue"  # and try again, with a warning; or 'stop'
  config.best_metric = "eval/loss"
  config.patience = 0  # evaluations without a better best_metric that end the run; 0: never
  config.wandb_project = ""  # empty: no wandb

  # Without what is said of a run elsewhere: lora.dropout, neftune_alpha.
  config.model = ConfigDict({name: getattr(model, name) for name in model.to_dict()})
  config.optimizer = ConfigDict(
    dict(
      name="adamw",  # mesh_adam, adamw, muon, adafactor
      learning_rate=6e-4,
      b1=0.9,
      b2=0.95,
      eps=1e-8,
      weight_decay=0.1,
      clip_norm=1.0,
      layer_decay=1.0,  # learning rate of a layer over that of the layer above it
      rates="",  # PATTERN=FACTOR,…: of the learning rate, for parameters whose path it matches
    )
  )
  config.schedule = ConfigDict(
    dict(
      name="cosine",  # mesh_cosine, mesh_linear, cosine, linear, wsd, constant
      warmup_steps=100,
      warmup_ratio=0.0,  # above 0: warmup_steps is this share of the steps
      decay_steps=1000,  # 0: the steps of the run
      cooldown=0.2,  # of `wsd`: share of the steps in which the rate falls
      floor=0.1,
    )
  )
  config.skip = ConfigDict(  # steps that change nothing and consume their batch
    dict(
      nonfinite=False,  # True: those whose loss or gradients are not finite; else these end the run
      spike_sigmas=0.0,  # those whose loss or gradient norm is so far above the last; 0: none
      window=128,  # steps whose mean and standard deviation that is measured by
      most=10,  # so many in a row end the run
    )
  )
  config.lora = ConfigDict(
    dict(
      rank=0,  # 0: all parameters learn
      alpha=16.0,  # factors are scaled by alpha / rank
      dropout=0.05,
      targets="all",  # or names with commas: q, k, v, out, c_fc, c_proj
      rslora=False,  # True: scaled by alpha / sqrt(rank)
      base="",  # frozen weights in 'int8' or 'int4'; '': as they are
    )
  )
  config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # one may be -1: the devices left
  config.data = ConfigDict(
    dict(
      source="jsonl",  # stdlib, jsonl, text, auto, datasets, shards, mixture
      path="",  # glob, several with commas; text: also folders; datasets: NAME_OR_PATH[#SPLIT]
      document="file",  # of files of text: file, line or paragraph
      validation_path="",  # empty: documents held out of `path`
      test_path="",
      mixture=(),  # ((share of tokens, source, path), ...)
      tokenizer="EleutherAI/gpt-neo-125m",  # hub id, folder, 'init_from' or 'train'
      num_streams=0,  # the order depends on it; 0: the most up to 64 that divide batch_size
      shuffle_window=256,  # documents per stream
      segment_ids=False,  # True: attention stops at document boundaries
      on_bad_record="stop",  # or 'skip': counted and reported
      validation_fraction=0.005,
      test_fraction=0.005,
      text_key="text",  # field of a record; a.b: field b of field a
      datasets_config="",  # name of a configuration of a `datasets` source
      columns="",  # ROLE=FIELD,…: what a labelled record's fields are; numbers: no header
      on_too_long="stop",  # examples longer than seq_len: stop, drop, truncate_left
      prefetch=4,  # batches read ahead
      cache="",  # of `shards` behind a URL: folder of blocks; empty: in the user's cache folder
      cache_gib=32.0,  # its limit; what was read longest ago leaves
    )
  )
  config.examples = ConfigDict(
    dict(
      packing=True,  # several examples in a row
      template="plain",  # of instructions: plain, alpaca, chat, or a text with {field}
      loss_on="answer",  # of instructions: answer, all, last_turn
      labels=(),  # (): those of the training records
      problem="",  # single_label_, multi_label_classification, regression; '': as the labels say
      class_weights="",  # 'balanced', or LABEL=WEIGHT,…
      both_orders=False,  # of pairs: both are read, and what the model says of them is added
      lm_coefficient=0.0,  # of the language model's loss beside that of the labels (GPT-1)
      stride=128,  # of long contexts: tokens that two windows share
      max_answer_tokens=30,
      no_answer_threshold=0.0,  # an empty answer is given where it scores this much better
    )
  )
  config.eval = ConfigDict(
    dict(
      documents=200,  # of the validation split; 0: all
      batch_size=0,  # 0: that of training, of one part
      baselines=False,  # print what a byte unigram and gzip -9 make of the same documents
      sample_tokens=64,  # length of the sample of text; 0: none
      sample_prompt="",  # empty: the beginning of a validation document
      tasks=(),  # of lm-evaluation-harness, with each evaluation: ("quick",), ("lambada_openai",)
      answers=20,  # of instructions: prompts that are answered, for their exact match; 0: none
      task_items=100,  # of each task, the first ones; 0: all
    )
  )
  config.profile = ConfigDict(dict(first_step=0, steps=0))  # steps to trace; 0: none
  return config.lock()


def neo(
  preset: str, *, learning_rate: float, batch_size: int, steps: int, decay_steps: int
) -> ConfigDict:
  """A GPT-Neo run as the original trained it: its Adam, schedule, clipping, z-loss."""
  config = base(PRESETS[preset])
  config.batch_size, config.steps = batch_size, steps
  config.z_loss = 1e-4
  config.optimizer.update(name="mesh_adam", learning_rate=learning_rate, b1=0.9, b2=0.95, eps=1e-8)
  config.optimizer.weight_decay = 0.0
  config.schedule.update(name="mesh_cosine", warmup_steps=3000, decay_steps=decay_steps, floor=0.1)
  config.grad_accumulation, config.model.remat = 0, "auto"
  config.mesh.update(data=1, fsdp=-1, tensor=1)
  config.data.update(path="data/pile/train/*.jsonl.zst", validation_path="data/pile/val.jsonl.zst")
  config.eval_every, config.checkpoint_every, config.log_every = 1000, 1000, 20
  return config


def finetune(task: str, arg: str = "", *, head: str = "lm") -> ConfigDict:
  """The fine-tuning of a model that is there, `config.init_from`; all its parameters, or by LoRA.

  arg: '' for all parameters; 'lora' for factors of rank 8 beside all linear layers, at ten times
    the learning rate; 'qlora' for the same over weights of 4 bits.
  """
  if arg not in ("", "lora", "qlora"):
    raise ValueError(f"unknown config argument {arg!r}; there are 'lora' and 'qlora'")
  config = base(ModelConfig(head=head))
  config.task, config.init_from, config.adopt_model = task, "EleutherAI/gpt-neo-125m", True
  config.epochs, config.every_epoch, config.keep_latest = 3.0, True, 1
  config.batch_size, config.grad_accumulation, config.model.remat = 16, 0, "auto"
  config.seq_len = 512
  config.optimizer.update(learning_rate=5e-5, b2=0.999, weight_decay=0.01)
  config.schedule.update(name="linear", warmup_steps=0, warmup_ratio=0.05, decay_steps=0, floor=0.0)
  config.data.update(source="auto", tokenizer="init_from", validation_fraction=0.1, test_fraction=0)
  config.eval.documents = 0
  if arg:
    config.optimizer.update(learning_rate=2e-4, weight_decay=0.0)
    config.lora.rank = 8
  if arg == "qlora":
    config.lora.base = "int4"
  return config.lock()


def finish(config: ConfigDict, arg: str) -> ConfigDict:
  """Applies `arg`, '' or 'runlocal'."""
  if arg not in ("", "runlocal"):
    raise ValueError(f"unknown config argument {arg!r}; there is only 'runlocal'")
  if arg == "runlocal":
    _shrink(config)
  return config


def flat(config: ConfigDict) -> dict[str, Any]:
  """The settings of a config by their dotted names, 'optimizer.b2'."""
  settings = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      settings |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
    else:
      settings[key] = value
  return settings


def apply(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """A copy of the config, locked, with settings changed, named as by `flat`."""
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(changes)
  return copy.lock()


def check_keys(config: ConfigDict) -> None:
  """Raises UserError for a setting that is unknown, missing or of another type.

  What `base` gives cannot be any of it; a file may build its own dictionary.
  """
  settings = flat(config)
  for name, value in settings.items():
    if name not in known():
      raise UserError(f"unknown setting {name}{did_you_mean(name, known())}")
    kind = type(known()[name])
    kinds = {float: (float, int), tuple: (tuple, list)}.get(kind, (kind,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
      raise UserError(f"{name} is {value!r}; it is of type {kind.__name__}")
  for name in known():
    if name not in settings:
      raise UserError(
        f"the config has no {name}; start it from"
        " gptneo_jax.training.run_config.base(), which has all"
      )


@functools.cache
def known() -> dict[str, Any]:
  """All settings by their dotted names, with a value of the type that each has."""
  return flat(base(ModelConfig()))


def _shrink(config: ConfigDict) -> None:
  """The same program in a minute on a laptop: thin and shallow, on the standard library's source.

  What makes the model that model stays: its kind, pattern, head size, initialisation and optimiser.
  """
  model = config.model
  head_dim = model.hidden_size // model.num_heads
  model.num_heads = max(1, 256 // head_dim)
  model.hidden_size = model.num_heads * head_dim
  model.intermediate_size = 0
  period = len(model.attention_pattern)
  model.num_layers = math.ceil(4 / period) * period
  model.vocab_size = 4096
  model.max_position_embeddings = min(model.max_position_embeddings, 512)
  config.seq_len = model.max_position_embeddings
  config.batch_size, config.grad_accumulation = 8, 1
  config.steps = 30
  config.log_every, config.eval_every, config.checkpoint_every = 1, 15, 15
  config.schedule.warmup_steps, config.schedule.decay_steps = 10, 30
  config.mesh.update(data=-1, fsdp=1, tensor=1)
  config.data.update(source="stdlib", path="", validation_path="", tokenizer="train")
  config.eval.documents = 8
