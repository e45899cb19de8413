"""Loads models onto a mesh from any kind of folder, initializes, resizes and saves them."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from gptneo_jax import interop
from gptneo_jax.attention import KERNELS
from gptneo_jax.checkpoints.folder import is_checkpoint_folder, load_config, save_config
from gptneo_jax.checkpoints.lazy import LazyArray, write_params
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.checkpoints.step_folders import find_checkpoint
from gptneo_jax.config import VOCABULARY_TABLES, ModelConfig
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.examples import task_file
from gptneo_jax.generation import unstacked
from gptneo_jax.interop.atomic_folder import new_folder
from gptneo_jax.interop.hf_import import GENERATION_CONFIG, HF_CONFIG
from gptneo_jax.model import heads, parameters
from gptneo_jax.model.decoder import init_stddev
from gptneo_jax.sharding import make_mesh

QUANTIZED_FILE = "quantised.safetensors"  # as folders that exist have it

# Covariance of new embeddings over that of the old ones, as in transformers.
_NEW_ROWS_SPREAD = 1e-9


class LoadedModel(NamedTuple):
  """Loaded parameters with their config, the place of the tokenizer, and files beside them.

  tokenizer_from: the folder that holds a tokenizer, or None.
  kept_files: contents by name: Hugging Face's config files, for a later export, and task.json.
  """

  config: ModelConfig
  params: Any
  tokenizer_from: str | None = None
  kept_files: dict[str, str] = {}  # noqa: RUF012 (never changed)


class QuantizedWeights(NamedTuple):
  """A quantized model: `weights` is all but its parameters (generation/quantization.py)."""

  weights: LoadedModel
  unstacked_params: Any
  mode: str


def load(name: str, dtype: str | None, mesh: Mesh, step: int | str | None = None) -> LoadedModel:
  """Reads a checkpoint folder, a Hugging Face folder or a model of the hub.

  Args:
    name: the folder, FOLDER/STEP for a checkpoint, or the hub id.
    dtype: of the result; None for the type stored.
    step: of a checkpoint folder, a number or 'best'; None for the newest.

  Raises:
    UserError: it does not exist, is damaged or is not supported.
  """
  folder, number = find_checkpoint(name, step)
  if is_checkpoint_folder(folder):
    return _load_ours(folder, number, dtype, mesh)
  return _load_hf(folder, dtype, mesh)


def start_from(
  name: str, config: ModelConfig, mesh: Mesh, *, adapt: bool = False, seed: int = 0
) -> Any:
  """Parameters for a model of `config` from anything that `load` reads, in `config.param_dtype`.

  Raises UserError as `load`, and if the weights are of another model. Their configs are compared,
  not only the shapes: window, attention pattern and epsilon have none. With `adapt` the config may
  have more token ids, for which rows are drawn, and another head, or one of other labels, which is
  a new one: normal, 0.02 as transformers', biases 0. Both are drawn from `seed`.
  """
  folder, step = find_checkpoint(name)
  ours = is_checkpoint_folder(folder)
  opened = None if ours else interop.open_hf(folder, config.param_dtype)
  source = load_config(folder) if opened is None else opened.config
  # Settings of a head's training do not belong to the model.
  same = ["param_dtype", "num_labels", "problem_type", "id2label", "pad_token_id"]
  if adapt:
    same += ["head"] + ["vocab_size"] * (config.vocab_size > source.vocab_size)
  alike = config.replace(**{field: getattr(source, field) for field in same})
  if differences := alike.differences(source):
    raise UserError(
      f"init_from {name} holds a different model (here != there: {'; '.join(differences)}); give"
      " these settings of model.* the values that they have there"
    )
  stored = alike.replace(param_dtype=config.param_dtype) if adapt else config
  abstract = abstract_params(_for_mesh(stored, mesh), mesh)
  if opened is None:
    params = restore_params(folder, abstract, step, vocab_size=stored.vocab_size)
  else:
    params = _placed(functools.partial(_leaf, opened.params), abstract)
  return _adapted(params, source, config, mesh, seed) if adapt else params


def _adapted(
  params: dict[str, Any], source: ModelConfig, config: ModelConfig, mesh: Mesh, seed: int
) -> dict[str, Any]:
  """The parameters of `source` for the same decoder with another head and more token ids.

  New rows of the tables have the old rows' mean and their covariance. They are for tokens with a
  part of their own in a task, between which a model must tell: nearly equal rows, as
  `resize_vocabulary` draws them, would give each the same meaning at first, and the same gradient.
  """
  abstract = abstract_params(config, mesh)
  if missing := abstract.keys() - params.keys() - {"head"}:
    raise UserError(f"init_from holds no {', '.join(sorted(missing))}, which this model has")
  key = jax.random.fold_in(jax.random.key(seed), 2)
  adapted = {name: params[name] for name in abstract if name != "head"}
  for number, name in enumerate(VOCABULARY_TABLES):
    if name in adapted and config.vocab_size > source.vocab_size:
      table_VxD = adapted[name][: source.vocab_size]
      rows = functools.partial(_resized, table_VxD, config.vocab_size)
      table_VxD = rows(jax.random.fold_in(key, number), spread=1.0)
      padding = ((0, config.padded_vocab_size - config.vocab_size), (0, 0))
      adapted[name] = jax.device_put(jnp.pad(table_VxD, padding), abstract[name].sharding)
  if "head" in abstract:
    fields = ("head", "num_labels", "id2label")
    kept = all(getattr(config, field) == getattr(source, field) for field in fields)
    head = params["head"] if kept else _new_head(config, abstract["head"], key)
    adapted["head"] = head
  return adapted


def _new_head(config: ModelConfig, abstract: dict[str, Any], key: jax.Array) -> dict[str, Any]:
  def make(path: tuple, to: jax.ShapeDtypeStruct) -> jax.Array:
    first = jnp.zeros(to.shape, to.dtype)
    if path[-1].key == "kernel":
      deviation = init_stddev(config, "head")
      first = (deviation * jax.random.normal(key, to.shape)).astype(to.dtype)
    return jax.device_put(first, to.sharding)

  return jax.tree_util.tree_map_with_path(make, abstract)


def init(config: ModelConfig, seed: int, mesh: Mesh) -> LoadedModel:
  """Random weights, initialized on the devices that hold them."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(config, mesh))
  make = functools.partial(parameters.init_params, heads.build(config))
  return LoadedModel(config, jax.jit(make, out_shardings=shardings)(jax.random.key(seed)))


def save(path: str, loaded: LoadedModel, tokenizer: Any) -> None:
  """Writes a checkpoint folder: step 0, config.json, and the tokenizer unless it is None."""
  unstacked_leaf = lambda x: LazyArray(x.shape, np.dtype(x.dtype), False, lambda _: np.asarray(x))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
  with new_folder(path, size) as folder:
    _save_rest(folder, loaded, tokenizer)
    write_params(folder, jax.tree.map(unstacked_leaf, loaded.params))


# --- quantized ------------------------------------------------------------------------------------


def quantize(loaded: LoadedModel, mode: str, mesh: Mesh) -> QuantizedWeights:
  """The model quantized for decoding, on one device. Raises UserError."""
  if mesh.size > 1:
    raise UserError(f"quantized weights are for one device, and the mesh has {mesh.size}")
  with jax.set_mesh(mesh):
    params = unstacked.decoding_params(loaded.config, loaded.params)
    quantized = _quantization().quantize(params, mode)
  return QuantizedWeights(loaded._replace(params=None), quantized, mode)


def dequantized(stored: QuantizedWeights, mesh: Mesh) -> Any:
  """Parameters, as model/decoder.py lays them out, that quantized weights encode."""
  config = stored.weights.config
  like = jax.eval_shape(
    functools.partial(unstacked.decoding_params, config), abstract_params(config, mesh)
  )
  return unstacked.stack(config, _quantization().dequantize(stored.unstacked_params, like))


def save_quantized(path: str, stored: QuantizedWeights, tokenizer: Any) -> None:
  """Writes a folder of ours with quantised.safetensors in place of a checkpoint."""
  quantization = _quantization()
  with new_folder(path, quantization.size(stored.unstacked_params)) as folder:
    _save_rest(folder, stored.weights, tokenizer)
    quantization.save(folder / QUANTIZED_FILE, stored.unstacked_params, stored.mode)


def load_quantized(name: str, mesh: Mesh) -> QuantizedWeights | None:
  """What `save_quantized` wrote; None where a folder holds no such weights. Raises UserError."""
  path = pathlib.Path(name) / QUANTIZED_FILE
  if not path.is_file():
    return None
  quantization = _quantization()
  mode, config = quantization.mode_of(path), load_config(name)
  if mesh.size > 1:
    raise UserError(f"quantized weights are for one device, and the mesh has {mesh.size}")
  like = jax.eval_shape(
    lambda params: quantization.quantize(unstacked.decoding_params(config, params), mode),
    abstract_params(config, mesh),
  )
  rest = LoadedModel(config, None, *_tokenizer_and_files(name))
  return QuantizedWeights(rest, quantization.load(path, like), mode)


def _quantization():
  """The module: qwix takes a second to import, and few models are quantized."""
  from gptneo_jax.generation import quantization

  return quantization


# --- changes and parts ----------------------------------------------------------------------------


def resize_vocabulary(
  config: ModelConfig, params: dict[str, Any], mesh: Mesh, size: int, seed: int
) -> tuple[ModelConfig, dict[str, Any]]:
  """The model with `size` token ids: the last rows of its tables are removed, or rows appended.

  New rows are drawn from a normal distribution with the old rows' mean and 1e-9 of their
  covariance, as transformers' resize_token_embeddings does.
  """
  resized = _for_mesh(config.replace(vocab_size=size), mesh)
  abstract = abstract_params(resized, mesh)
  params = dict(params)
  for number, name in enumerate(("wte", "lm_head")):
    if name in params:
      key = jax.random.fold_in(jax.random.key(seed), number)
      table_VxD = _resized(params[name][: config.vocab_size], size, key)
      padding = ((0, resized.padded_vocab_size - size), (0, 0))
      params[name] = jax.device_put(jnp.pad(table_VxD, padding), abstract[name].sharding)
  return resized, params


def placed_like(abstract: Any, params: Any) -> Any:
  """The parameters with the shardings of `abstract`. Raises UserError if names or shapes differ."""
  names = lambda tree: {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  ours, theirs = names(abstract), names(params)
  for name in sorted(ours.keys() | theirs.keys()):
    if ours.get(name) != theirs.get(name):
      raise UserError(
        f"lm.params: {name} is {theirs.get(name, 'absent')}, and the model's is"
        f" {ours.get(name, 'absent')}"
      )
  return jax.tree.map(lambda to, leaf: jax.device_put(leaf, to.sharding), abstract, params)


def first_device() -> Mesh:
  """A mesh of this process's first device."""
  return make_mesh(devices=jax.local_devices()[:1])


def _save_rest(folder: Any, loaded: LoadedModel, tokenizer: Any) -> None:
  """Writes a checkpoint folder's files beside the weights."""
  save_config(folder, loaded.config)
  for name, text in loaded.kept_files.items():
    (folder / name).write_text(text)
  if tokenizer is not None:
    tokenizer.save_pretrained(folder)


def _tokenizer_and_files(name: str) -> tuple[str | None, dict[str, str]]:
  """The `tokenizer_from` and `kept_files` of a checkpoint folder."""
  folder = epath.Path(name)
  return (
    name if (folder / "tokenizer.json").exists() else None,
    _texts(folder, HF_CONFIG, GENERATION_CONFIG, task_file.FILE),
  )


def _texts(folder: Any, *files: str) -> dict[str, str]:
  """The contents of those files that are there."""
  paths = {file: folder / file for file in files}
  return {file: path.read_text() for file, path in paths.items() if path.exists()}


def _load_ours(name: str, step: int | None, dtype: str | None, mesh: Mesh) -> LoadedModel:
  stored = load_config(name)
  config = _for_mesh(stored, mesh)
  if config.attention_impl in KERNELS.values():
    config = config.replace(attention_impl="auto")  # it was chosen for the hardware of the training
  with user_errors():
    config = config.replace(param_dtype=dtype or stored.param_dtype)
  if dtype is not None or config.param_dtype == "float16":
    config = config.replace(dtype=_compute_dtype(config.param_dtype, mesh))
  abstract = abstract_params(config, mesh)
  params = restore_params(name, abstract, step, vocab_size=config.vocab_size)
  return LoadedModel(config, params, *_tokenizer_and_files(name))


def _load_hf(name: str, dtype: str | None, mesh: Mesh) -> LoadedModel:
  opened = interop.open_hf(name, dtype)
  config = _for_mesh(opened.config, mesh)
  config = config.replace(dtype=_compute_dtype(config.param_dtype, mesh))

  params = _placed(functools.partial(_leaf, opened.params), abstract_params(config, mesh))
  kept = {HF_CONFIG: json.dumps(opened.hf_config, indent=2) + "\n"}
  kept |= _texts(opened.folder, GENERATION_CONFIG, task_file.FILE)
  return LoadedModel(config, params, str(opened.folder) if opened.has_tokenizer else None, kept)


def abstract_params(config: ModelConfig, mesh: Mesh) -> Any:
  """The parameters as ShapeDtypeStructs on a mesh. Raises UserError if it does not divide them."""
  with user_errors():
    return parameters.abstract_params(heads.build(config), mesh)


def _compute_dtype(param_dtype: str, mesh: Mesh) -> str:
  """The type to compute in for a type of weights.

  float16 is used for computation on GPUs only, where it is fast, and old ones have no bfloat16;
  elsewhere it is a storage type for float32. Attention scores and sums are float32 in any case.
  """
  if param_dtype == "float16" and mesh.devices.flat[0].platform != "gpu":
    return "float32"
  return param_dtype


def _for_mesh(config: ModelConfig, mesh: Mesh) -> ModelConfig:
  """The config with vocabulary tables padded so that the mesh divides them."""
  parts = mesh.shape["tensor"]
  if config.padded_vocab_size % parts == 0:
    return config
  return config.replace(vocab_multiple=math.lcm(config.vocab_multiple, parts))


def _leaf(tree: Any, path: str) -> LazyArray:
  for key in path.split("/"):
    tree = tree[key]
  return tree


def _placed(leaf: Callable[[str], LazyArray], abstract: Any) -> Any:
  """Reads one array after another onto the mesh; pads tables with zeros to their new length."""

  def place(path, to: jax.ShapeDtypeStruct) -> jax.Array:
    array = leaf(jax.tree_util.keystr(path, simple=True, separator="/")).load().astype(to.dtype)
    if array.shape != to.shape:
      array = np.pad(array, [(0, n - m) for n, m in zip(to.shape, array.shape)])
    return jax.device_put(array, to.sharding)

  return jax.tree_util.tree_map_with_path(place, abstract)


def _resized(
  table_VxD: jax.Array, size: int, key: jax.Array, spread: float = _NEW_ROWS_SPREAD
) -> jax.Array:
  """A table of `size` rows; new ones have the old ones' mean and `spread` of their covariance."""
  V = table_VxD.shape[0]
  old_VxD = table_VxD.astype(jnp.float32)
  mean_1xD = old_VxD.mean(0, keepdims=True)
  # Random mixtures of the deviations have their covariance, without factorizing a matrix.
  mix_NxV = jax.random.normal(key, (max(size - V, 0), V)) / math.sqrt(V)
  new_NxD = mean_1xD + math.sqrt(spread) * mix_NxV @ (old_VxD - mean_1xD)
  return jnp.concatenate([table_VxD[:size], new_NxD.astype(table_VxD.dtype)])
