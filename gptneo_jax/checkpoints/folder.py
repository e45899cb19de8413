"""A checkpoint folder and its config.json, which describes the model in it."""

from __future__ import annotations

import importlib.util
import json
import os

from etils import epath

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError

_CONFIG_FILE = "config.json"
_FORMAT = "gptneo_jax"  # distinguishes it from Hugging Face's file of the same name


def run_folder(name: str) -> epath.Path:
  """The folder that a run writes: local (`~` is expanded) or gs://.

  Raises UserError for other URLs, also s3://, which orbax cannot write, for gs:// without gcsfs,
  and for a file.
  """
  scheme, url, _ = name.partition("://")
  if not url:
    folder = epath.Path(os.path.expanduser(name))
    if folder.is_file():
      raise UserError(f"{name} is a file; a run needs a folder")
    return folder
  if scheme != "gs":
    raise UserError(
      f"{name}: checkpoints are written to a local folder or gs://, not {scheme}://; a bucket that"
      " is mounted is a local folder"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{name}: gs:// needs gcsfs: pip install 'gptneo_jax[gcs]'")
  return epath.Path(name)


def save_config(folder: epath.PathLike, config: ModelConfig) -> None:
  """Writes FOLDER/config.json; FOLDER may be gs://."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps({"format": _FORMAT, **config.to_dict()}, indent=2)
  (folder / _CONFIG_FILE).write_text(text + "\n")


def is_checkpoint_folder(folder: epath.PathLike) -> bool:
  """Whether FOLDER/config.json exists and was written by gptneo_jax (and not by Hugging Face)."""
  try:
    fields = json.loads((epath.Path(folder) / _CONFIG_FILE).read_text())
    return isinstance(fields, dict) and fields.get("format") == _FORMAT
  except (OSError, ValueError):
    return False


def load_config(folder: epath.PathLike) -> ModelConfig:
  """Reads FOLDER/config.json. Raises UserError if it is missing, damaged or another program's."""
  path = epath.Path(folder) / _CONFIG_FILE
  if not path.exists():
    raise UserError(f"{folder} holds no {_CONFIG_FILE}: it is not a gptneo_jax checkpoint folder")
  try:
    fields = json.loads(path.read_text())
    if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
      raise UserError(f"{path} was not written by gptneo_jax")
    return ModelConfig.from_dict(fields)
  except ValueError as error:
    raise UserError(f"{path} cannot be read: {error}") from None
