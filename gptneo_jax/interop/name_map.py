"""The table that maps Hugging Face's tensors to our parameters; used in both directions.

A row: their name (below `transformer.`, for layer {i} below `transformer.h.{i}.`), our path or
paths (of a layer: below `blocks/layer_J`), and the layout of their tensor:

  same    the same array
  table   the same array; ours may have rows of padding after the vocabulary
  flat    ours with its axes merged into one
  linear  nn.Linear, (out, in): ours as a matrix of inputs x outputs, transposed
  conv1d  GPT-2's Conv1D, (in, out): ours as a matrix of inputs x outputs

Several paths are one tensor of theirs, concatenated along its output axis. Source: transformers'
modeling_gpt_neo.py and modeling_gpt2.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params

PREFIX = "transformer."  # before the decoder's names in every class with a head
_TILE = 128  # rows and columns: two tiles fit the cache


@dataclasses.dataclass(frozen=True)
class Row:
  hf_name: str
  paths: tuple[str, ...]
  layout: str = "same"
  input_axes: int = 1  # leading axes of our kernel that are its inputs


def _norm(name: str) -> list[Row]:
  return [Row(f"{name}.weight", (f"{name}/scale",)), Row(f"{name}.bias", (f"{name}/bias",))]


_EMBEDDINGS = [Row("wte.weight", ("wte",), "table"), Row("wpe.weight", ("wpe",))]

_NEO_LAYER = [
  *_norm("ln_1"),
  Row("attn.attention.q_proj.weight", ("attn/q/kernel",), "linear"),
  Row("attn.attention.k_proj.weight", ("attn/k/kernel",), "linear"),
  Row("attn.attention.v_proj.weight", ("attn/v/kernel",), "linear"),
  Row("attn.attention.out_proj.weight", ("attn/out/kernel",), "linear", input_axes=2),
  Row("attn.attention.out_proj.bias", ("attn/out/bias",)),
  *_norm("ln_2"),
  Row("mlp.c_fc.weight", ("mlp/c_fc/kernel",), "linear"),
  Row("mlp.c_fc.bias", ("mlp/c_fc/bias",)),
  Row("mlp.c_proj.weight", ("mlp/c_proj/kernel",), "linear"),
  Row("mlp.c_proj.bias", ("mlp/c_proj/bias",)),
]

_GPT2_LAYER = [
  *_norm("ln_1"),
  Row("attn.c_attn.weight", ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), "conv1d"),
  Row("attn.c_attn.bias", ("attn/q/bias", "attn/k/bias", "attn/v/bias"), "flat"),
  Row("attn.c_proj.weight", ("attn/out/kernel",), "conv1d", input_axes=2),
  Row("attn.c_proj.bias", ("attn/out/bias",)),
  *_norm("ln_2"),
  Row("mlp.c_fc.weight", ("mlp/c_fc/kernel",), "conv1d"),
  Row("mlp.c_fc.bias", ("mlp/c_fc/bias",)),
  Row("mlp.c_proj.weight", ("mlp/c_proj/kernel",), "conv1d"),
  Row("mlp.c_proj.bias", ("mlp/c_proj/bias",)),
]

LAYER_ROWS = {"gpt_neo": _NEO_LAYER, "gpt2": _GPT2_LAYER}

LM_HEAD = Row("lm_head.weight", ("lm_head",), "table")

# The name of each head's module in PyTorch.
HEAD_NAMES = {
  "lm": "lm_head",
  "sequence_classification": "score",
  "token_classification": "classifier",
  "question_answering": "qa_outputs",
  "double_heads": "multiple_choice_head.summary",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One Hugging Face tensor of a model, and the parameters that it holds."""

  name: str  # in full
  paths: tuple[str, ...]  # of our parameters
  index: int | None  # of the slice along their leading axis; None: they have no axis of layers
  row: Row


def entries(config: ModelConfig) -> list[Entry]:
  """All tensors of a model; those that hold the layers of one parameter follow one another."""
  found = [Entry(PREFIX + row.hf_name, row.paths, None, row) for row in _EMBEDDINGS]
  for row in LAYER_ROWS[config.model_type]:
    for j in range(config.period):
      paths = tuple(f"blocks/layer_{j}/{path}" for path in row.paths)
      for i in range(j, config.num_layers, config.period):
        name = f"{PREFIX}h.{i}.{row.hf_name}"
        found.append(Entry(name, paths, i // config.period, row))
  found += [Entry(PREFIX + row.hf_name, row.paths, None, row) for row in _norm("ln_f")]
  if config.untied_lm_head:
    found.append(Entry(LM_HEAD.hf_name, LM_HEAD.paths, None, LM_HEAD))
  if config.head_size:
    rows = [Row(f"{HEAD_NAMES[config.head]}.weight", ("head/kernel",), "linear")]
    if config.head_bias:
      rows.append(Row(f"{HEAD_NAMES[config.head]}.bias", ("head/bias",)))
    found += [Entry(row.hf_name, row.paths, None, row) for row in rows]
  return found


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(heads.build(config)))
  return {"/".join(key.key for key in keys): tuple(leaf.shape) for keys, leaf in leaves}


def hf_shape(entry: Entry, shapes: dict[str, tuple[int, ...]], vocab_size: int) -> tuple:
  """The shape of a Hugging Face tensor, from the shapes of our parameters by path."""
  shape = shapes[entry.paths[0]]
  if entry.index is not None:
    shape = shape[1:]
  row, parts = entry.row, len(entry.paths)
  if row.layout == "table":
    return (vocab_size, *shape[1:])
  if row.layout == "same":
    return shape
  if row.layout == "flat":
    return (parts * math.prod(shape),)
  inputs, outputs = math.prod(shape[: row.input_axes]), parts * math.prod(shape[row.input_axes :])
  return (outputs, inputs) if row.layout == "linear" else (inputs, outputs)


def to_hf(entry: Entry, arrays: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
  """The Hugging Face tensor from our arrays: one for each path, without the axis of the layers."""
  row = entry.row
  if row.layout == "table":
    return arrays[0][:vocab_size]
  if row.layout == "same":
    return arrays[0]
  if row.layout == "flat":
    return np.concatenate([array.reshape(-1) for array in arrays])
  matrices = [array.reshape(math.prod(array.shape[: row.input_axes]), -1) for array in arrays]
  matrix = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
  return _transpose(matrix) if row.layout == "linear" else matrix


def from_hf(entry: Entry, array: np.ndarray, part: int, shape: tuple[int, ...]) -> np.ndarray:
  """Our array for `entry.paths[part]`, of `shape`, from the Hugging Face tensor."""
  if entry.row.layout == "table":
    return array[: shape[0]]
  if len(entry.paths) > 1:
    array = np.split(array, len(entry.paths), axis=-1)[part]
  if entry.row.layout == "linear":
    array = _transpose(array)
  return np.ascontiguousarray(array).reshape(shape)


def _transpose(x: np.ndarray) -> np.ndarray:
  """The transpose of a matrix, copied; tile by tile, which is several times faster."""
  rows, columns = x.shape
  out = np.empty((columns, rows), x.dtype)
  # As integers of the same width: NumPy copies bfloat16 element by element.
  source, target = (a.view(f"u{x.itemsize}") for a in (x, out))
  for i in range(0, rows, _TILE):
    for j in range(0, columns, _TILE):
      target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T
  return out
