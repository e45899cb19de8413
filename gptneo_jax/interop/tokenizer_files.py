"""A folder's tokenizer files: whether it has them, their number of ids, and copying them."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from gptneo_jax.data import load_tokenizer
from gptneo_jax.errors import UserError
from gptneo_jax.interop.hf_files import TOKENIZER_FILES


def missing_tokenizer(source: Any) -> UserError:
  return UserError(
    f"{source} holds no tokenizer; --tokenizer gives one, --no_tokenizer converts the weights alone"
  )


def has_tokenizer(folder: pathlib.Path) -> bool:
  there = lambda name: (folder / name).is_file()
  alone = ("tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model")
  return any(map(there, alone)) or (there("vocab.json") and there("merges.txt"))


def copy_tokenizer(name: str, folder: pathlib.Path) -> None:
  """Copies a tokenizer's files into a folder; if they are not complete, transformers writes them.

  For older models the end-of-text token, or the tokenizer itself, is defined by the class that
  config.json names, and by no file.

  name: folder or hub id.
  """
  tokenizer = load_tokenizer(name)  # raises where it cannot be read
  source = pathlib.Path(os.path.expanduser(name))
  try:
    settings = json.loads((source / "tokenizer_config.json").read_text())
  except (OSError, ValueError):
    settings = {}
  if (source / "tokenizer.json").is_file() and settings.get("eos_token"):
    for file in TOKENIZER_FILES:
      if (source / file).is_file():
        shutil.copyfile(source / file, folder / file)
  else:
    tokenizer.save_pretrained(folder)


def tokenizer_size(folder: pathlib.Path) -> int:
  """One more than the largest id in the folder's tokenizer files; 0 if there are none."""

  def content(file: str) -> dict[str, Any]:
    try:
      return json.loads((folder / file).read_text())
    except OSError:
      return {}

  ids = [-1]
  try:
    tokenizer = content("tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    # A unigram model has a list, whose indices are the ids.
    ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in tokenizer.get("added_tokens", ())]
    for file in ("vocab.json", "added_tokens.json"):
      ids += content(file).values()
    ids += map(int, content("tokenizer_config.json").get("added_tokens_decoder", {}))
    if (folder / "vocab.txt").is_file():
      ids.append(len((folder / "vocab.txt").read_text().splitlines()) - 1)
    return max(ids) + 1
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from None
