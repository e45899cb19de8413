"""Hugging Face's folders, opened; and written as checkpoint folders of ours."""

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
import ml_dtypes
import numpy as np

from gptneo_jax.checkpoints.folder import is_checkpoint_folder, save_config
from gptneo_jax.checkpoints.lazy import LazyArray, write_params
from gptneo_jax.config import ModelConfig, dtype_name
from gptneo_jax.data import refuse_pointer
from gptneo_jax.errors import UserError
from gptneo_jax.interop import hub, name_map
from gptneo_jax.interop.atomic_folder import new_folder
from gptneo_jax.interop.hf_config import from_hf
from gptneo_jax.interop.hf_files import open_tensors, refuse_adapter
from gptneo_jax.interop.name_map import Entry
from gptneo_jax.interop.names import ignore_pattern, plain_names
from gptneo_jax.interop.tensor import Tensor
from gptneo_jax.interop.tokenizer_files import (
  bring_tokenizer,
  has_tokenizer,
  no_tokenizer,
  tokenizer_ids,
)

# Their files, kept in our folder for the way back.
HF_CONFIG = "hf_config.json"
GENERATION_CONFIG = "generation_config.json"

FLOATS = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}
_PADDINGS = (8, 16, 32, 64, 128)  # multiples to which tables over a vocabulary are padded
_COMPARED_BYTES = 64 << 20

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
  """A model of theirs in our terms. Nothing of `params` is read yet.

  Attributes:
    folder: where it is; a folder of the hub's cache if it came from there.
    config: what it is; `param_dtype` is the type in which `params` come.
    params: nested dictionaries of LazyArray: the tree of our model.
    hf_config: their config.json.
    has_tokenizer: whether there is a tokenizer in the folder.
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
    dtype: 'float32', 'bfloat16' or 'float16', to have another type than the one stored.
    ignore: patterns of the names of tensors that are no part of the model ('v_head.*').

  Raises:
    UserError: no such model, or one that is damaged, contradicts its config.json, or is not of a
      kind that is supported; names the tensor, the file or the setting.
  """
  folder = hub.find(name)
  hf_config = _read_config(folder)
  config = from_hf(hf_config, folder / "config.json")
  tensors = plain_names(open_tensors(folder), ignore)
  config = _with_lm_head(config, tensors)
  _check_vocabulary(config, folder, tensors)
  dtype = dtype_name(dtype)
  stored = _stored_dtype(tensors, dtype)
  config = config.replace(
    param_dtype=dtype or stored,
    # float16 overflows in the attention scores of GPT-Neo: it is for storage only.
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
  change: Callable[[ModelConfig, str, LazyArray], LazyArray] | None = None,
  tokenizer: bool = True,
  tokenizer_from: str | None = None,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> HuggingFaceModel:
  """Writes a model of theirs as a checkpoint folder of ours: step 0, config.json, tokenizer.

  The model is never whole in memory. `destination` is there whole in the end, or not at all.

  Args:
    source, dtype, ignore: as in `open_hf`.
    destination: a folder that is empty or not there yet.
    change: told the model and each parameter's path, gives what is written in its place.
    tokenizer: False to do without: else a source that has none is refused.
    tokenizer_from: folder or hub id whose tokenizer is taken; default the source's own.
    progress: told the bytes written so far, and in all.

  Raises:
    UserError: as `open_hf`; or the destination cannot be written.
  """
  model = open_hf(source, dtype, ignore)
  if tokenizer and tokenizer_from is None and not model.has_tokenizer:
    raise UserError(no_tokenizer(source))
  if change is not None:
    params = jax.tree_util.tree_map_with_path(
      lambda keys, leaf: change(model.config, "/".join(key.key for key in keys), leaf),
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
      bring_tokenizer(tokenizer_from or str(model.folder), folder)
    write_params(folder, model.params, on_written=on_written)
  return model


class Caster:
  """Casts arrays, and says once of each that it holds numbers that are not finite."""

  def __init__(self):
    self._said: set[str] = set()

  def __call__(self, array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in another type. Raises UserError where finite numbers become infinite."""
    finite = np.isfinite(array)
    if not finite.all() and name not in self._said:
      self._said.add(name)
      _log.warning("%s holds %d numbers that are not finite", name, (~finite).sum())
    if array.dtype == dtype:
      return array
    with np.errstate(over="ignore"):
      result = array.astype(dtype)
    if (np.isfinite(result) != finite).any():
      raise UserError(f"{name} has values beyond the range of {dtype}: take another --dtype")
    return result


# --- what a folder holds --------------------------------------------------------------------------


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "config.json"
  refuse_pointer(path)
  if not path.is_file():
    refuse_adapter(folder)
    if any((folder / name).is_file() for name in ("hparams.json", "model.ckpt.index")):
      open_tensors(folder)  # refuses OpenAI's own files by name
    raise UserError(f"{folder} holds no config.json: it is no Hugging Face model")
  try:
    fields = json.loads(path.read_text())
    if not isinstance(fields, dict):
      raise ValueError("it holds no object")
  except ValueError as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if is_checkpoint_folder(folder):
    raise UserError(f"{folder} is a gptneo_jax checkpoint folder already")
  return fields


def _with_lm_head(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
  """Whether the output head is the embedding is decided by the weights, not by the config.

  A copy of the embedding beside it is dropped; a table of its own is kept, whatever config.json
  says: transformers too takes the weights.
  """
  name, embedding = name_map.LM_HEAD.theirs, f"{name_map.PREFIX}wte.weight"
  head, table = tensors.get(name), tensors.get(embedding)
  if not config.has_lm_head or head is None or not config.tie_word_embeddings:
    return config
  if table is None:  # of two names for one tensor, safetensors' save_model keeps one
    tensors[embedding] = tensors.pop(name)
    return config
  if _same(head, table):
    del tensors[name]
    return config
  _log.warning(
    "%s: %s is not the embedding, although config.json says tie_word_embeddings; it is kept as a"
    " table of its own", head.file, name,
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
  """Notes rows of padding behind the vocabulary, which are dropped; `_check` refuses other rows.

  Raises UserError where the tokenizer has ids that lie among them.
  """
  table = tensors.get(f"{name_map.PREFIX}wte.weight")
  if table is not None and _is_padding(table.shape[0], config.vocab_size):
    ids = tokenizer_ids(folder)
    if ids > config.vocab_size:
      raise UserError(
        f"{folder / 'config.json'}: vocab_size is {config.vocab_size}, but the embedding has"
        f" {table.shape[0]} rows and the tokenizer {ids} ids: set vocab_size to {table.shape[0]}"
      )
    _log.warning(
      "%s: the embedding has %d rows, %d of them padding behind the vocabulary of config.json; they"
      " are dropped", folder, table.shape[0], table.shape[0] - config.vocab_size,
    )  # fmt: skip


def _is_padding(rows: int, vocab_size: int) -> bool:
  return rows > vocab_size and any(rows == -(-vocab_size // m) * m for m in _PADDINGS)


def _stored_dtype(tensors: Mapping[str, Tensor], wanted: str | None) -> str:
  """The one float type of the weights.

  Raises UserError if there are several, or one that is not computed in, and none is wanted.
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
    raise UserError("there are no tensors in the weights")
  if len(first) > 1 and wanted is None:
    found = ", ".join(f"{name} {dtype}" for dtype, name in first.items())
    raise UserError(f"the weights are of several types ({found}): choose one with --dtype")
  return next(iter(first), "float64")


# --- the tree of ours -----------------------------------------------------------------------------


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
    read = _read_piece(
      sources[path], tensors, shape[1:] if stacked else shape, FLOATS[config.param_dtype], cast
    )
    node[leaf] = LazyArray(shape, FLOATS[config.param_dtype], stacked, read)
  return tree


def _read_piece(sources, tensors: Mapping[str, Tensor], shape, dtype: np.dtype, cast: Caster):
  def read(index: int | None) -> np.ndarray:
    entry, part = sources[index]
    # The type first: half the bytes are left to transpose.
    array = cast(tensors[entry.name].read(), dtype, entry.name)
    return name_map.to_ours(entry, array, part, shape)

  return read


def _check(config, entries: list[Entry], shapes, tensors: Mapping[str, Tensor]) -> None:
  """Raises UserError naming the first tensor that is missing, of a wrong shape, or too many."""
  expected = {e.name: name_map.their_shape(e, shapes, config.vocab_size) for e in entries}
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
        f"{_of_head(config)} has not{_how_to_ignore(name)}"
      )


def _how_to_ignore(name: str) -> str:
  if name.startswith(name_map.PREFIX):
    return ""  # of more layers, or of another model
  return f"; `convert hf-to-orbax … --ignore {ignore_pattern(name)!r}` leaves it out"


def _of_head(config: ModelConfig) -> str:
  return "" if config.head == "lm" else f" and a head for {config.head.replace('_', ' ')}"


def _leaves(tree: Any) -> list[LazyArray]:
  if isinstance(tree, LazyArray):
    return [tree]
  return [leaf for node in tree.values() for leaf in _leaves(node)]
