"""Where a Hugging Face model is: a local folder, or the hub's, in its cache or fetched."""

from __future__ import annotations

import json
import os
import pathlib

from gptneo_jax.errors import UserError, first_line
from gptneo_jax.interop.hf_files import TOKENIZER_FILES, weights_file

_TIMEOUT = 10  # seconds for the first answer of the hub
_CONFIGS = ("config.json", "generation_config.json")


def find(name: str) -> pathlib.Path:
  """The folder of a model: `name` if it is one, else what the hub has under that id.

  A model that the hub's cache holds whole is taken from there without asking. Of several forms of
  the weights only the first that can be read is fetched. Raises UserError where there is no such
  folder, or where the hub does not give the model.
  """
  folder = pathlib.Path(os.path.expanduser(name))
  if folder.is_dir():
    return folder
  if folder.exists():
    raise UserError(f"{name} is a file; give the folder that holds config.json and the weights")
  if name.startswith(("/", ".", "~")) or name.count("/") > 1:
    raise UserError(f"{name}: no such folder")
  import huggingface_hub

  try:
    cached = pathlib.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    if (cached / "config.json").exists() and _is_whole(cached):
      return cached
  except Exception:  # not there, or not a valid id: the hub is to say which
    pass
  try:
    # One request, instead of most of a minute of retries when there is no network.
    info = huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT)
    there = {file.rfilename for file in info.siblings or ()}
    weights = weights_file(there)
    patterns = [*_CONFIGS, *TOKENIZER_FILES]
    if weights is None:
      raise UserError(f"{name} on the hub holds no weights that are read here")
    stem, _, suffix = weights.removesuffix(".index.json").rpartition(".")
    patterns += [weights, *([f"{stem}-*.{suffix}"] if weights.endswith(".index.json") else [])]
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except UserError:
    raise
  except Exception as error:  # every layer below raises its own
    raise UserError(
      f"{name}: no such folder here, and the hub does not give it: {first_line(error)}"
    ) from None


def _is_whole(folder: pathlib.Path) -> bool:
  """Whether the cache has the weights, all parts of them."""
  name = weights_file({path.name for path in folder.iterdir()})
  if name is None:
    return False
  if not name.endswith(".index.json"):
    return True
  return all((folder / part).exists() for part in
             json.loads((folder / name).read_text())["weight_map"].values())  # fmt: skip
