"""Opens the tensors of a Hugging Face folder, in any of its file formats, without reading them."""

from __future__ import annotations

import json
import pathlib

from gptneo_jax.data import refuse_pointer
from gptneo_jax.errors import UserError
from gptneo_jax.interop.tensor import Tensor

# In order of preference: first the formats that need neither torch nor a second copy in memory.
FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "spiece.model",
  "tokenizer.model",
  "chat_template.jinja",
)

_INDEX = ".index.json"  # follows the name of a file that was split

_REFUSED = {
  "rust_model.ot": "rust_model.ot is rust-bert's",
  "tf_model.h5": "tf_model.h5 is TensorFlow's",
  "hparams.json": "hparams.json and model.ckpt are OpenAI's own TensorFlow files",
  "model.ckpt*": "model.ckpt is a TensorFlow checkpoint",
}
_HUB_IDS = {
  ("gpt_neo", 12): "EleutherAI/gpt-neo-125m",
  ("gpt_neo", 24): "EleutherAI/gpt-neo-1.3B",
  ("gpt_neo", 32): "EleutherAI/gpt-neo-2.7B",
  ("gpt2", 6): "distilbert/distilgpt2",
  ("gpt2", 12): "openai-community/gpt2",
  ("gpt2", 24): "openai-community/gpt2-medium",
  ("gpt2", 36): "openai-community/gpt2-large",
  ("gpt2", 48): "openai-community/gpt2-xl",
}


def open_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
  """The tensors in a folder, by the names that they are stored under.

  Raises UserError if there are none, if a file is missing or damaged, or if the format is not
  supported.
  """
  name = weights_file({path.name for path in folder.iterdir()})
  if name is None:
    refuse_adapter(folder)
    raise UserError(_why_not(folder))
  return _open_split(folder / name) if name.endswith(_INDEX) else open_file(folder / name)


def weights_file(names: set[str]) -> str | None:
  """The one of a folder's files that holds the weights, or the index of those that do, or None."""
  return next((n for file in FILES for n in (file, file + _INDEX) if n in names), None)


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one file. Raises UserError if it is damaged."""
  refuse_pointer(path)
  if path.suffix == ".safetensors":
    from gptneo_jax.interop.safetensors_file import open_safetensors

    return open_safetensors(path)
  if path.suffix == ".bin":
    from gptneo_jax.interop.pytorch import open_bin

    return open_bin(path)
  from gptneo_jax.interop.flax_msgpack import open_msgpack

  return open_msgpack(path)


def _open_split(index: pathlib.Path) -> dict[str, Tensor]:
  refuse_pointer(index)
  try:
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    parts = sorted(set(files.values()))
  except (ValueError, TypeError, KeyError, AttributeError):
    raise UserError(f"{index} is damaged: it has no weight_map") from None
  tensors: dict[str, Tensor] = {}
  for part in parts:
    # '../x' would be a file of another folder.
    if not isinstance(part, str) or part != pathlib.PurePath(part).name:
      raise UserError(f"{index} names {part!r:.80}, which is no file of its folder")
    if not (index.parent / part).is_file():
      raise UserError(f"{index} names {part}, which does not exist")
    tensors |= open_file(index.parent / part)
  for name, part in files.items():
    if part.endswith(".msgpack"):
      from gptneo_jax.interop.flax_msgpack import pytorch_name

      name = pytorch_name(name.split("/"))
    if name not in tensors:
      raise UserError(f"{index.parent / part} lacks {name}, which {index.name} lists")
  return tensors


def refuse_adapter(folder: pathlib.Path) -> None:
  """Raises UserError if a folder holds PEFT's files."""
  if any(folder.glob("adapter_model.*")) or (folder / "adapter_config.json").is_file():
    raise UserError(
      f"{folder} holds an adapter, not a model: pass it as --adapter, with the model that it was"
      " trained on"
    )


def _why_not(folder: pathlib.Path) -> str:
  for pattern, text in _REFUSED.items():
    if any(folder.glob(pattern)):
      return (
        f"{folder}: {text}, which is not supported; {_hub_id(folder)} on the Hugging Face hub has"
        f" the same weights as model.safetensors"
      )
  return f"{folder} holds no weights: none of {', '.join(FILES)}"


def _hub_id(folder: pathlib.Path) -> str:
  """The hub's id of the released model with as many layers as the folder's config names."""
  fields = {}
  for file in ("config.json", "hparams.json"):
    if (folder / file).is_file():
      try:
        fields = json.loads((folder / file).read_text())
        break
      except ValueError:
        continue
  layers = fields.get("num_layers", fields.get("n_layer"))
  family = fields.get("model_type", "gpt_neo" if "num_layers" in fields else "gpt2")
  known = [name for (kind, _), name in _HUB_IDS.items() if kind == family]
  return _HUB_IDS.get((family, layers), " or ".join(known or _HUB_IDS.values()))
