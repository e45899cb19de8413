"""A folder's tokenizer: whether there is one, how many ids it has, and a copy of it elsewhere."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from gptneo_jax.data import load_tokenizer
from gptneo_jax.errors import UserError
from gptneo_jax.interop.hf_files import TOKENIZER_FILES


def no_tokenizer(source: Any) -> str:
  return (
    f"{source} holds no tokenizer; --tokenizer gives one, --no_tokenizer converts the weights alone"
  )


def has_tokenizer(folder: pathlib.Path) -> bool:
  there = lambda name: (folder / name).is_file()  # noqa: E731
  alone = ("tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model")
  return any(map(there, alone)) or (there("vocab.json") and there("merges.txt"))


def bring_tokenizer(name: str, folder: pathlib.Path) -> None:
  """Copies a tokenizer's files; where they do not stand alone, has transformers write them anew.

  In older models the end of text, or the tokenizer itself, comes from the class that config.json
  names, and is in no file.

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


def tokenizer_ids(folder: pathlib.Path) -> int:
  """One more than the largest id that any of the folder's tokenizer files names, 0 without any."""

  def content(file: str) -> dict[str, Any]:
    try:
      return json.loads((folder / file).read_text())
    except OSError:
      return {}

  ids = [-1]
  try:
    whole = content("tokenizer.json")
    vocabulary = whole.get("model", {}).get("vocab", {})
    # Of a unigram model a list, whose places are the ids.
    ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in whole.get("added_tokens", ())]
    for file in ("vocab.json", "added_tokens.json"):
      ids += content(file).values()
    ids += map(int, content("tokenizer_config.json").get("added_tokens_decoder", {}))
    if (folder / "vocab.txt").is_file():
      ids.append(len((folder / "vocab.txt").read_text().splitlines()) - 1)
    return max(ids) + 1
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from None
