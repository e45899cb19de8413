"""ID@REVISION: names of the Hugging Face hub, the revision that one asks for, and its commit."""

from __future__ import annotations

import functools
import os
import pathlib
import re

from gptneo_jax.data.documents import DataError

_TIMEOUT = 10  # seconds until the hub must have answered
_COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w./-]*")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Of which a model's or a tokenizer's snapshot in the cache has at least one.
_CACHED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")


def split_revision(name: str) -> tuple[str, str | None]:
  """The id, and the branch, tag or commit behind its @; (name, None) where none is meant.

  None is in what exists here, whatever its name, and in a path or URL. Raises DataError for what
  is no name of a revision.
  """
  if "@" not in name or "://" in name or name.startswith(("/", ".", "~")) or os.path.exists(name):
    return name, None
  hub_id, _, revision = name.partition("@")
  if not hub_id or ".." in revision or not _REVISION.fullmatch(revision):
    raise DataError(f"{name}: a hub id and its revision are written ID@REVISION")
  return hub_id, revision


def commit_of_folder(folder: str | os.PathLike) -> str:
  """The commit whose snapshot a folder of the hub's cache is, '' for any other folder."""
  path = pathlib.Path(folder)
  return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else ""


def commit_of_model(name: str) -> str:
  """The commit of a hub's model or tokenizer that was read from the cache; '' for anything else."""
  if os.path.exists(os.path.expanduser(name)) or "://" in name:
    return ""
  hub_id, revision = split_revision(name)
  if not _ID.fullmatch(hub_id):
    return ""
  import huggingface_hub

  for file in _CACHED_FILES:
    found = huggingface_hub.try_to_load_from_cache(hub_id, file, revision=revision)
    if isinstance(found, str):
      return commit_of_folder(os.path.dirname(found))
  return ""


@functools.cache
def commit_of_dataset(name: str) -> str:
  """The commit of a data set of the hub, asked for once; '' if it is elsewhere, or not to be had.

  name: without #SPLIT.
  """
  if os.path.exists(os.path.expanduser(name)) or "://" in name:
    return ""
  hub_id, revision = split_revision(name)
  if not _ID.fullmatch(hub_id):
    return ""
  import huggingface_hub

  try:
    found = huggingface_hub.HfApi().dataset_info(hub_id, revision=revision, timeout=_TIMEOUT)
  except Exception:  # without a network `datasets` reads its cache, or says what is wrong
    return ""
  return found.sha or ""


def with_commit(name: str) -> str:
  """'NAME at 1a2b3c4' of a hub's model or tokenizer, else the name."""
  commit = commit_of_model(name)
  return f"{name} at {commit[:7]}" if commit else name
