"""Which tokenizer a run has: that of the run it goes on with, of the weights it starts from, or the
one that its config asks for."""

from __future__ import annotations

import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data, hosts
from gptneo_jax.checkpoint_steps import find as find_checkpoint
from gptneo_jax.checkpoint_steps import latest_step


def find(config: ConfigDict, data_config: data.DataConfig, workdir: epath.Path) -> tuple[Any, str]:
  """The tokenizer, and a line that names it. It is left in `workdir`, which is to stand alone.

  A folder with a checkpoint goes on with its own. In any other one the config decides, whatever a
  start that failed has left there. Raises UserError.
  """
  goes_on = latest_step(str(workdir)) is not None

  def action() -> tuple[Any, str]:
    saved = data.saved_tokenizer(str(workdir)) if goes_on or not hosts.is_first() else None
    if saved is not None:
      return saved, _named(saved, f"of the run{_difference(data_config.tokenizer, saved)}")
    tokenizer, origin = _new(config, data_config)
    data.save_tokenizer(tokenizer, str(workdir))
    return tokenizer, _named(tokenizer, origin)

  return hosts.first_then_others(action)


def _new(config: ConfigDict, data_config: data.DataConfig) -> tuple[Any, str]:
  name = data_config.tokenizer
  if name != "train":
    return data.load_tokenizer(name), name
  if config.init_from:  # a new one would have other ids for the tokens of these weights
    tokenizer = data.saved_tokenizer(find_checkpoint(config.init_from)[0])
    return tokenizer or data.load_tokenizer(config.init_from), f"of {config.init_from}"
  learned = data.load_tokenizer(
    name, documents=data.mixed_documents(data_config), vocab_size=config.model.vocab_size
  )
  return learned, "learned from the training documents"


def _difference(name: str, saved: Any) -> str:
  """What is to be said of data.tokenizer where it names another one that is at hand."""
  if name == "train" or not os.path.exists(os.path.expanduser(name)):
    return ""
  other = data.load_tokenizer(name)
  if data.DocumentEncoder(other).fingerprint() == data.DocumentEncoder(saved).fingerprint():
    return ""
  return f", not data.tokenizer {name}, which is another ({data.vocabulary_size(other)} ids)"


def _named(tokenizer: Any, origin: str) -> str:
  return f"tokenizer: {data.vocabulary_size(tokenizer)} ids, {origin}"
