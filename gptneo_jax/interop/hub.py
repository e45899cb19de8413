"""Finds a Hugging Face model: in a local folder, in the hub's cache, or on the hub."""

from __future__ import annotations

import json
import os
import pathlib

from gptneo_jax.data import split_revision
from gptneo_jax.errors import UserError, first_line
from gptneo_jax.interop.hf_files import TOKENIZER_FILES, weights_file

_TIMEOUT = 10  # seconds until the hub must have answered
_CONFIGS = ("config.json", "generation_config.json")


def local_folder(name: str) -> pathlib.Path:
  """The local folder of a model: `name` itself, or the hub's cache of the model with that id.

  ID@REVISION is a branch, tag or commit of it.

  A model that is complete in the cache is not asked for on the hub. If the hub has the weights in
  several formats, only the preferred one is downloaded. Raises UserError if there is no such
  folder and the hub does not provide the model.
  """
  folder = pathlib.Path(os.path.expanduser(name))
  if folder.is_dir():
    return folder
  if folder.exists():
    raise UserError(f"{name} is a file; give the folder that holds config.json and the weights")
  hub_id, revision = split_revision(name)
  if name.startswith(("/", ".", "~")) or hub_id.count("/") > 1:
    raise UserError(f"{name}: no such folder")
  import huggingface_hub

  try:
    cached = pathlib.Path(
      huggingface_hub.snapshot_download(hub_id, local_files_only=True, revision=revision)
    )
    if (cached / "config.json").exists() and _is_complete(cached):
      return cached
  except Exception:  # not cached, or not a valid id: the hub says which
    pass
  try:
    # One request first: without a network, snapshot_download retries for most of a minute.
    info = huggingface_hub.HfApi().model_info(hub_id, timeout=_TIMEOUT, revision=revision)
    there = {file.rfilename for file in info.siblings or ()}
    weights = weights_file(there)
    patterns = [*_CONFIGS, *TOKENIZER_FILES]
    if weights is None:
      raise UserError(f"{name} on the hub has no weights in a supported format")
    stem, _, suffix = weights.removesuffix(".index.json").rpartition(".")
    patterns += [weights, *([f"{stem}-*.{suffix}"] if weights.endswith(".index.json") else [])]
    return pathlib.Path(
      huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, revision=revision)
    )
  except UserError:
    raise
  except Exception as error:  # each layer of huggingface_hub raises its own
    raise UserError(
      f"{name}: no such folder, and the hub does not provide it: {first_line(error)}"
    ) from None


def _is_complete(folder: pathlib.Path) -> bool:
  """Whether the cache has all files of the weights."""
  name = weights_file({path.name for path in folder.iterdir()})
  if name is None:
    return False
  if not name.endswith(".index.json"):
    return True
  return all((folder / part).exists() for part in
             json.loads((folder / name).read_text())["weight_map"].values())  # fmt: skip
