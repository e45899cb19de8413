"""The one table between Hugging Face's tensors and ours, used in both directions.

A row: their name (below `transformer.`, `{i}` the layer), our path or paths (of a layer: below
`blocks/layer_J`), and the form of theirs:

  table   the same array; ours may have rows of padding behind the vocabulary
  same    the same array
  flat    ours with its axes merged into one
  linear  nn.Linear: (out, in), the transpose of ours with inputs and outputs merged
  conv1d  GPT-2's Conv1D: (in, out), ours with inputs and outputs merged

Several paths of ours are one tensor of theirs, side by side along its last axis. Source:
transformers' modeling_gpt_neo.py and modeling_gpt2.py.
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
_TILE = 128  # a transpose in tiles that fit the cache is several times faster


@dataclasses.dataclass(frozen=True)
class Row:
  theirs: str
  ours: tuple[str, ...]
  form: str = "same"
  inputs: int = 1  # leading axes of our kernel that are its inputs


def _norm(theirs: str, ours: str) -> list[Row]:
  return [Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))]


_EMBEDDINGS = [Row("wte.weight", ("wte",), "table"), Row("wpe.weight", ("wpe",))]

_NEO_LAYER = [
  *_norm("ln_1", "ln_1"),
  Row("attn.attention.q_proj.weight", ("attn/q/kernel",), "linear"),
  Row("attn.attention.k_proj.weight", ("attn/k/kernel",), "linear"),
  Row("attn.attention.v_proj.weight", ("attn/v/kernel",), "linear"),
  Row("attn.attention.out_proj.weight", ("attn/out/kernel",), "linear", inputs=2),
  Row("attn.attention.out_proj.bias", ("attn/out/bias",)),
  *_norm("ln_2", "ln_2"),
  Row("mlp.c_fc.weight", ("mlp/c_fc/kernel",), "linear"),
  Row("mlp.c_fc.bias", ("mlp/c_fc/bias",)),
  Row("mlp.c_proj.weight", ("mlp/c_proj/kernel",), "linear"),
  Row("mlp.c_proj.bias", ("mlp/c_proj/bias",)),
]

_GPT2_LAYER = [
  *_norm("ln_1", "ln_1"),
  Row("attn.c_attn.weight", ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), "conv1d"),
  Row("attn.c_attn.bias", ("attn/q/bias", "attn/k/bias", "attn/v/bias"), "flat"),
  Row("attn.c_proj.weight", ("attn/out/kernel",), "conv1d", inputs=2),
  Row("attn.c_proj.bias", ("attn/out/bias",)),
  *_norm("ln_2", "ln_2"),
  Row("mlp.c_fc.weight", ("mlp/c_fc/kernel",), "conv1d"),
  Row("mlp.c_fc.bias", ("mlp/c_fc/bias",)),
  Row("mlp.c_proj.weight", ("mlp/c_proj/kernel",), "conv1d"),
  Row("mlp.c_proj.bias", ("mlp/c_proj/bias",)),
]

LAYER_ROWS = {"gpt_neo": _NEO_LAYER, "gpt2": _GPT2_LAYER}

LM_HEAD = Row("lm_head.weight", ("lm_head",), "table")

# The head's name in PyTorch, and the class that has it, without the family's name before it.
HEAD_NAMES = {
  "lm": "lm_head",
  "sequence_classification": "score",
  "token_classification": "classifier",
  "question_answering": "qa_outputs",
  "double_heads": "multiple_choice_head.summary",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of theirs: its full name, and where it stands with us."""

  name: str
  paths: tuple[str, ...]  # our leaves
  index: int | None  # slice of their leading axis, None for the whole leaf
  row: Row


def entries(config: ModelConfig) -> list[Entry]:
  """All tensors of a model, the layers of one leaf next to each other."""
  found = [Entry(PREFIX + row.theirs, row.ours, None, row) for row in _EMBEDDINGS]
  for row in LAYER_ROWS[config.model_type]:
    for j in range(config.period):
      paths = tuple(f"blocks/layer_{j}/{path}" for path in row.ours)
      for i in range(j, config.num_layers, config.period):
        name = f"{PREFIX}h.{i}.{row.theirs}"
        found.append(Entry(name, paths, i // config.period, row))
  found += [Entry(PREFIX + row.theirs, row.ours, None, row) for row in _norm("ln_f", "ln_f")]
  if config.untied_lm_head:
    found.append(Entry(LM_HEAD.theirs, LM_HEAD.ours, None, LM_HEAD))
  if config.head_size:
    rows = [Row(f"{HEAD_NAMES[config.head]}.weight", ("head/kernel",), "linear")]
    if config.head_bias:
      rows.append(Row(f"{HEAD_NAMES[config.head]}.bias", ("head/bias",)))
    found += [Entry(row.theirs, row.ours, None, row) for row in rows]
  return found


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of every leaf of ours, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(heads.build(config)))
  return {"/".join(key.key for key in keys): tuple(leaf.shape) for keys, leaf in leaves}


def their_shape(entry: Entry, shapes: dict[str, tuple[int, ...]], vocab_size: int) -> tuple:
  """The shape of a tensor of theirs, from the shapes of our leaves."""
  shape = shapes[entry.paths[0]]
  if entry.index is not None:
    shape = shape[1:]
  row, parts = entry.row, len(entry.paths)
  if row.form == "table":
    return (vocab_size, *shape[1:])
  if row.form == "same":
    return shape
  if row.form == "flat":
    return (parts * math.prod(shape),)
  inputs, outputs = math.prod(shape[: row.inputs]), parts * math.prod(shape[row.inputs :])
  return (outputs, inputs) if row.form == "linear" else (inputs, outputs)


def to_theirs(entry: Entry, arrays: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
  """Their tensor from our arrays: one per path, already without the axis of the layers."""
  row = entry.row
  if row.form == "table":
    return arrays[0][:vocab_size]
  if row.form == "same":
    return arrays[0]
  if row.form == "flat":
    return np.concatenate([array.reshape(-1) for array in arrays])
  matrices = [array.reshape(math.prod(array.shape[: row.inputs]), -1) for array in arrays]
  matrix = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
  return _transpose(matrix) if row.form == "linear" else matrix


def to_ours(entry: Entry, array: np.ndarray, part: int, shape: tuple[int, ...]) -> np.ndarray:
  """Our array number `part`, of `shape`, from their tensor."""
  if entry.row.form == "table":
    return array[: shape[0]]
  if len(entry.paths) > 1:
    array = np.split(array, len(entry.paths), axis=-1)[part]
  if entry.row.form == "linear":
    array = _transpose(array)
  return np.ascontiguousarray(array).reshape(shape)


def _transpose(x: np.ndarray) -> np.ndarray:
  """The transpose of a matrix as an array of its own."""
  rows, columns = x.shape
  out = np.empty((columns, rows), x.dtype)
  # Of plain numbers of the same width: NumPy copies bfloat16 element by element.
  source, target = (a.view(f"u{x.itemsize}") for a in (x, out))
  for i in range(0, rows, _TILE):
    for j in range(0, columns, _TILE):
      target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T
  return out
