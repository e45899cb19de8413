"""The tokenizer of a run: its own when it resumes, that of the weights it starts from, or the one
that its config names."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.checkpoints.folder import is_checkpoint_folder
from gptneo_jax.checkpoints.step_folders import find_checkpoint, latest_step
from gptneo_jax.errors import UserError
from gptneo_jax.training import multihost


def find(config: ConfigDict, data_config: data.DataConfig, workdir: epath.Path) -> tuple[Any, str]:
  """The tokenizer, and a line that names it. It is saved in `workdir`.

  A folder with a checkpoint keeps its own. In any other the config decides, whatever a failed start
  has left there. Raises UserError.
  """
  resumes = latest_step(str(workdir)) is not None

  def action() -> tuple[Any, str]:
    saved = data.saved_tokenizer(str(workdir)) if resumes or not multihost.is_host0() else None
    if saved is not None:
      return saved, _named(saved, f"of the run{_difference(data_config.tokenizer, saved)}")
    tokenizer, origin = _new(config, data_config)
    data.save_tokenizer(tokenizer, str(workdir))
    return tokenizer, _named(tokenizer, origin)

  return multihost.run_on_host0_first(action)


def check_of_weights(tokenizer: Any, init_from: str) -> None:
  """Raises UserError if the weights that a run starts from were trained with other ids for tokens.

  Weights without a tokenizer are not compared.
  """
  other = _of_weights(init_from)
  if other is None:
    return
  here, there = (
    {number: token for token, number in each.get_vocab().items()} for each in (tokenizer, other)
  )
  common = sorted(here.keys() & there.keys())
  wrong = [number for number in common if here[number] != there[number]]
  ends = tokenizer.eos_token_id, other.eos_token_id
  what = ""
  if wrong:
    tokens = f"{there[wrong[0]]!r} there, {here[wrong[0]]!r} here"
    what = f"{len(wrong)} of {len(common)} ids mean other tokens, such as {wrong[0]}: {tokens}"
  elif None not in ends and ends[0] != ends[1]:
    what = f"the end of text is {ends[1]} there, {ends[0]} here"
  if what:
    raise UserError(
      f"init_from {init_from} was trained with another tokenizer ({what}); take its own:"
      f" --config.data.tokenizer={find_checkpoint(init_from)[0]}"
    )


def _of_weights(init_from: str) -> Any:
  """The tokenizer beside weights, None if there is none."""
  folder = find_checkpoint(init_from)[0]
  saved = data.saved_tokenizer(folder)
  if saved is None and not is_checkpoint_folder(folder):
    with contextlib.suppress(data.DataError):
      return data.load_tokenizer(folder)
  return saved


def _new(config: ConfigDict, data_config: data.DataConfig) -> tuple[Any, str]:
  name = data_config.tokenizer
  if name == "init_from" and not config.init_from:
    raise UserError("data.tokenizer is that of init_from, and that is empty")
  if name not in ("train", "init_from"):
    return data.load_tokenizer(name), data.with_commit(name)
  if name == "train" and (shards := data_config.shards):
    folder = shards[0].rstrip("/")
    return data.load_tokenizer(f"{folder}/{data.SHARDS_TOKENIZER}"), f"of {folder}"
  if config.init_from:  # a new one would have other ids for the tokens of these weights
    tokenizer = data.saved_tokenizer(find_checkpoint(config.init_from)[0])
    return tokenizer or data.load_tokenizer(
      config.init_from
    ), f"of {data.with_commit(config.init_from)}"
  learned = data.load_tokenizer(
    name, documents=data.mixed_documents(data_config), vocab_size=config.model.vocab_size
  )
  return learned, "learned from the training documents"


def _difference(name: str, saved: Any) -> str:
  """What to say of data.tokenizer where it names another tokenizer that is there."""
  if name in ("train", "init_from") or not os.path.exists(os.path.expanduser(name)):
    return ""
  other = data.load_tokenizer(name)
  if data.DocumentEncoder(other).fingerprint() == data.DocumentEncoder(saved).fingerprint():
    return ""
  return f", not data.tokenizer {name}, which is another ({data.vocabulary_size(other)} ids)"


def _named(tokenizer: Any, origin: str) -> str:
  return f"tokenizer: {data.vocabulary_size(tokenizer)} ids, {origin}"
