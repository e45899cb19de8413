"""Opens Hugging Face models, and writes them as checkpoint folders."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gptneo_jax.checkpoints.folder import is_checkpoint_folder, save_config
from gptneo_jax.checkpoints.lazy import LazyArray, write_params
from gptneo_jax.config import ModelConfig, dtype_name
from gptneo_jax.data import refuse_pointer
from gptneo_jax.errors import UserError
from gptneo_jax.interop import hub, name_map
from gptneo_jax.interop.atomic_folder import new_folder
from gptneo_jax.interop.dtypes import FLOATS, Caster
from gptneo_jax.interop.hf_config import from_hf
from gptneo_jax.interop.hf_files import open_tensors, refuse_adapter
from gptneo_jax.interop.hf_names import canonical_names, ignore_pattern
from gptneo_jax.interop.name_map import Entry
from gptneo_jax.interop.tensor import Tensor
from gptneo_jax.interop.tokenizer_files import (
  copy_tokenizer,
  has_tokenizer,
  missing_tokenizer,
  tokenizer_size,
)

# Hugging Face's files, kept in a checkpoint folder for a later export.
HF_CONFIG = "hf_config.json"
GENERATION_CONFIG = "generation_config.json"

_PADDINGS = (8, 16, 32, 64, 128)  # multiples to which others pad the rows of vocabulary tables
_COMPARED_BYTES = 64 << 20  # at a time

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
  """A Hugging Face model as a parameter tree that has not been read yet.

  Attributes:
    folder: its local folder; in the hub's cache if it is from the hub.
    config: ModelConfig; `param_dtype` is the type of `params`.
    params: nested dictionaries of LazyArray, the parameter tree of our model.
    hf_config: the content of its config.json.
    has_tokenizer: whether the folder has a tokenizer.
  """

  folder: pathlib.Path
  config: ModelConfig
  params: dict[str, Any]
  hf_config: dict[str, Any]
  has_tokenizer: bool


def open_hf(name: str, dtype: str | None = None, ignore: Sequence[str] = ()) -> HuggingFaceModel:
  """Opens a local folder or a hub id, and checks each tensor's name, shape and type.

  Args:
    name: hub id or local folder.
    dtype: 'float32', 'bfloat16' or 'float16'; default the type stored.
    ignore: patterns of the names of tensors that do not belong to the model ('v_head.*').

  Raises:
    UserError: the model does not exist, is damaged, contradicts its config.json or is not
      supported; names the tensor, the file or the setting.
  """
  folder = hub.local_folder(name)
  hf_config = _read_config(folder)
  config = from_hf(hf_config, folder / "config.json")
  tensors = canonical_names(open_tensors(folder), ignore)
  config = _with_lm_head(config, tensors)
  _check_vocabulary(config, folder, tensors)
  dtype = dtype_name(dtype)
  stored = _stored_dtype(tensors, dtype)
  config = config.replace(
    param_dtype=dtype or stored,
    # GPT-Neo's attention scores overflow in float16: it is for storage only.
    dtype="bfloat16" if (dtype or stored) == "bfloat16" else "float32",
  )
  params = _params(config, tensors)
  return HuggingFaceModel(folder, config, params, hf_config, has_tokenizer(folder))


def hf_to_orbax(
  source: str,
  destination: str | os.PathLike,
  *,
  dtype: str | None = None,
  ignore: Sequence[str] = (),
  transform: Callable[[ModelConfig, str, LazyArray], LazyArray] | None = None,
  tokenizer: bool = True,
  tokenizer_from: str | None = None,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> HuggingFaceModel:
  """Writes a Hugging Face model as a checkpoint folder: step 0, config.json and tokenizer.

  Holds a few tensors in memory, never the model. `destination` appears complete or not at all.

  Args:
    source, dtype, ignore: as in `open_hf`.
    destination: a new or empty folder.
    transform: called with the config, each parameter's path and array; returns the array to write.
    tokenizer: whether a tokenizer is written; if so, a source without one is refused.
    tokenizer_from: folder or hub id of the tokenizer; default the source's own.
    progress: called with the bytes written so far and the total.

  Raises:
    UserError: as `open_hf`, or the destination cannot be written.
  """
  model = open_hf(source, dtype, ignore)
  if tokenizer and tokenizer_from is None and not model.has_tokenizer:
    raise missing_tokenizer(source)
  if transform is not None:
    params = jax.tree_util.tree_map_with_path(
      lambda keys, leaf: transform(model.config, "/".join(key.key for key in keys), leaf),
      model.params,
    )
    model = dataclasses.replace(model, params=params)
  leaves = _leaves(model.params)
  total, done = sum(leaf.nbytes for leaf in leaves), 0

  def on_written(size: int) -> None:
    nonlocal done
    done += size
    progress(done, total)

  with new_folder(destination, total) as folder:
    save_config(folder, model.config)
    (folder / HF_CONFIG).write_text(json.dumps(model.hf_config, indent=2) + "\n")
    if (model.folder / GENERATION_CONFIG).exists():
      shutil.copyfile(model.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    if tokenizer:
      copy_tokenizer(tokenizer_from or str(model.folder), folder)
    write_params(folder, model.params, on_written=on_written)
  return model


# --- checks of a folder ---------------------------------------------------------------------------


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "config.json"
  refuse_pointer(path)
  if not path.is_file():
    refuse_adapter(folder)
    if any((folder / name).is_file() for name in ("hparams.json", "model.ckpt.index")):
      open_tensors(folder)  # raises, naming OpenAI's own files
    raise UserError(f"{folder} holds no config.json: it is not a Hugging Face model")
  try:
    fields = json.loads(path.read_text())
    if not isinstance(fields, dict):
      raise ValueError("it is not a JSON object")
  except ValueError as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if is_checkpoint_folder(folder):
    raise UserError(f"{folder} is already a gptneo_jax checkpoint folder")
  return fields


def _with_lm_head(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
  """Sets `tie_word_embeddings` by the weights, not by config.json, as transformers does.

  A head that equals the embedding is removed from the tensors; one that differs is kept.
  """
  name, embedding = name_map.LM_HEAD.hf_name, f"{name_map.PREFIX}wte.weight"
  head, table = tensors.get(name), tensors.get(embedding)
  if not config.has_lm_head or head is None or not config.tie_word_embeddings:
    return config
  if table is None:  # safetensors' save_model keeps one name of a shared tensor
    tensors[embedding] = tensors.pop(name)
    return config
  if _same(head, table):
    del tensors[name]
    return config
  _log.warning(
    "%s: %s is not the embedding, although config.json says tie_word_embeddings; it is kept as a"
    " separate table", head.file, name,
  )  # fmt: skip
  return config.replace(tie_word_embeddings=False)


def _same(a: Tensor, b: Tensor) -> bool:
  if (a.shape, a.dtype) != (b.shape, b.dtype):
    return False
  left, right = (np.ascontiguousarray(t.read()).reshape(-1).view(np.uint8) for t in (a, b))
  step = _COMPARED_BYTES
  return all(
    np.array_equal(left[i : i + step], right[i : i + step]) for i in range(0, left.size, step)
  )


def _check_vocabulary(config: ModelConfig, folder: pathlib.Path, tensors) -> None:
  """Warns of padding rows after the vocabulary, which are dropped; `_check` refuses other rows.

  Raises UserError if the tokenizer has ids in the padding.
  """
  table = tensors.get(f"{name_map.PREFIX}wte.weight")
  if table is not None and _is_padding(table.shape[0], config.vocab_size):
    ids = tokenizer_size(folder)
    if ids > config.vocab_size:
      raise UserError(
        f"{folder / 'config.json'}: vocab_size is {config.vocab_size}, but the embedding has"
        f" {table.shape[0]} rows and the tokenizer {ids} ids: set vocab_size to {table.shape[0]}"
      )
    _log.warning(
      "%s: the embedding has %d rows, of which the last %d are padding after the vocabulary of"
      " config.json; they are dropped", folder, table.shape[0], table.shape[0] - config.vocab_size,
    )  # fmt: skip


def _is_padding(rows: int, vocab_size: int) -> bool:
  return rows > vocab_size and any(rows == -(-vocab_size // m) * m for m in _PADDINGS)


def _stored_dtype(tensors: Mapping[str, Tensor], wanted: str | None) -> str:
  """The float type of the weights.

  Raises UserError if there are several, or if it is float64, and no type was asked for.
  """
  names = {dtype: name for name, dtype in FLOATS.items()}
  first: dict[str, str] = {}
  for name, tensor in tensors.items():
    if tensor.dtype == np.float64:
      if wanted is None:
        raise UserError(f"{tensor.file}: {name} is stored as float64: choose a type with --dtype")
      continue
    if tensor.dtype not in names:
      raise UserError(f"{tensor.file}: {name} is stored as {tensor.dtype}, which is not supported")
    first.setdefault(names[tensor.dtype], name)
  if not tensors:
    raise UserError("the weights hold no tensors")
  if len(first) > 1 and wanted is None:
    found = ", ".join(f"{name} {dtype}" for dtype, name in first.items())
    raise UserError(f"the weights have several types ({found}): choose one with --dtype")
  return next(iter(first), "float64")


# --- the parameter tree ---------------------------------------------------------------------------


def _params(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
  shapes = name_map.leaf_shapes(config)
  entries = name_map.entries(config)
  _check(config, entries, shapes, tensors)
  sources: dict[str, dict[int | None, tuple[Entry, int]]] = {path: {} for path in shapes}
  for entry in entries:
    for part, path in enumerate(entry.paths):
      sources[path][entry.index] = (entry, part)
  tree: dict[str, Any] = {}
  cast = Caster()
  for path, shape in shapes.items():
    *parents, leaf = path.split("/")
    node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
    stacked = None not in sources[path]
    read = _slice_reader(
      sources[path], tensors, shape[1:] if stacked else shape, FLOATS[config.param_dtype], cast
    )
    node[leaf] = LazyArray(shape, FLOATS[config.param_dtype], stacked, read)
  return tree


def _slice_reader(sources, tensors: Mapping[str, Tensor], shape, dtype: np.dtype, cast: Caster):
  def read(index: int | None) -> np.ndarray:
    entry, part = sources[index]
    # Cast before transposing: often half the bytes.
    array = cast(tensors[entry.name].read(), dtype, entry.name)
    return name_map.from_hf(entry, array, part, shape)

  return read


def _check(config, entries: list[Entry], shapes, tensors: Mapping[str, Tensor]) -> None:
  """Raises UserError naming the first tensor that is missing, unexpected or of another shape."""
  expected = {e.name: name_map.hf_shape(e, shapes, config.vocab_size) for e in entries}
  files = sorted({str(tensor.file) for tensor in tensors.values()})
  where = files[0] if len(files) == 1 else f"{os.path.dirname(files[0])}"
  for name, shape in expected.items():
    if name not in tensors:
      raise UserError(
        f"{where} lacks {name}, which a {config.model_type} with {config.num_layers} layers"
        f"{_of_head(config)} has"
      )
    found = tensors[name].shape
    padded = name.endswith(("wte.weight", "lm_head.weight")) and (
      found[1:] == shape[1:] and _is_padding(found[0], shape[0])
    )
    if found != shape and not padded:
      raise UserError(
        f"{tensors[name].file}: {name} has shape {found}, and config.json makes it {shape}"
      )
  for name, tensor in tensors.items():
    if name not in expected:
      raise UserError(
        f"{tensor.file} holds {name}, which a {config.model_type} with {config.num_layers} layers"
        f"{_of_head(config)} does not have{_how_to_ignore(name)}"
      )


def _how_to_ignore(name: str) -> str:
  if name.startswith(name_map.PREFIX):
    return ""  # the decoder has more layers, or is of another model
  return f"; `convert hf-to-orbax … --ignore {ignore_pattern(name)!r}` leaves it out"


def _of_head(config: ModelConfig) -> str:
  return "" if config.head == "lm" else f" and a head for {config.head.replace('_', ' ')}"


def _leaves(tree: Any) -> list[LazyArray]:
  if isinstance(tree, LazyArray):
    return [tree]
  return [leaf for node in tree.values() for leaf in _leaves(node)]
