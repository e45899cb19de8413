"""LoRA adapters in PEFT's two files, adapter_config.json and adapter_model.safetensors.

PEFT stores a matrix A (r, in) and B (out, r) for each adapted matrix of each layer; model/lora.py
describes the factors that they become here. Source: huggingface/peft, tuners/lora.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.interop import name_map
from gptneo_jax.interop.hf_files import open_file
from gptneo_jax.interop.safetensors_file import write_safetensors
from gptneo_jax.model import lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BIN_FILE = "adapter_model.bin"  # of older versions of PEFT

_PREFIX = "base_model.model."
_TASKS = {
  "lm": "CAUSAL_LM",
  "sequence_classification": "SEQ_CLS",
  "token_classification": "TOKEN_CLS",
  "question_answering": "QUESTION_ANS",
  "double_heads": None,
}
# Settings that follow from the tensors, matter only for training, or are descriptions.
_HARMLESS = {
  "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
  "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout",
  "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
  "target_modules", "task_type",
}  # fmt: skip
_READ = {
  "alpha_pattern", "init_lora_weights", "lora_alpha", "modules_to_save", "peft_type", "r",
  "rank_pattern", "use_rslora",
}  # fmt: skip
# Other initializations change the base model's weights too.
_PLAIN_INITS = (True, False, "gaussian")


def read_adapter(folder: str | os.PathLike, config: ModelConfig) -> dict[str, Any]:
  """Reads PEFT's files for a model: an adapter as model/lora.py has it, of float32 NumPy arrays.

  Raises UserError for a missing or damaged file, a setting that is neither implemented nor at its
  default, and tensors that do not belong to this model; names the setting or the tensor.
  """
  folder = pathlib.Path(os.path.expanduser(folder))
  settings = _read_settings(folder / CONFIG_FILE)
  path = next((folder / f for f in (WEIGHTS_FILE, _BIN_FILE) if (folder / f).is_file()), None)
  if path is None:
    raise UserError(f"{folder} holds no {WEIGHTS_FILE}: it is not a LoRA adapter in PEFT's format")
  tensors = {
    _our_name(name): np.asarray(tensor.read(), np.float32)
    for name, tensor in open_file(path).items()
  }
  head = _take_head(config, settings, tensors, path)
  pairs = _take_pairs(config, tensors, path)
  if tensors:
    raise UserError(f"{path} holds {next(iter(tensors))}, which does not belong to this model")
  if settings.get("layers_to_transform") is None and isinstance(settings["target_modules"], list):
    _check_all_layers(config, pairs, path)
  return _to_tree(config, settings, pairs) | ({"head": head} if head else {})


def write_adapter(
  folder: str | os.PathLike,
  config: ModelConfig,
  adapter: dict[str, Any],
  *,
  base: str | None = None,
  dropout: float = 0.0,
) -> None:
  """Writes the two files that PEFT opens, in float32; creates the folder if necessary.

  base: folder or hub id of the base model, for PEFT to find it. dropout: used in training.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  scale = _first_scale(adapter)
  tensors, ranks = _to_pairs(config, adapter, scale)
  rank = min(ranks.values())
  wider = {name: r for name, r in ranks.items() if r != rank}
  head_name = name_map.HEAD_NAMES[config.head]
  head = adapter.get("head")
  if head is not None:
    tensors[f"{_PREFIX}{head_name}.weight"] = np.asarray(head["kernel"], np.float32).T
    if "bias" in head:
      tensors[f"{_PREFIX}{head_name}.bias"] = np.asarray(head["bias"], np.float32)
  settings = {
    "peft_type": "LORA",
    "task_type": _TASKS[config.head],
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": scale * rank,
    "lora_dropout": dropout,
    "target_modules": sorted(ranks),
    "modules_to_save": None if head is None else [head_name],
    "fan_in_fan_out": config.model_type == "gpt2",  # the layout of Conv1D
    "bias": "none",
    "use_rslora": False,
    "rank_pattern": wider,
    "alpha_pattern": {name: scale * r for name, r in wider.items()},
  }
  write_safetensors(
    folder / WEIGHTS_FILE,
    {name: (x.shape, x.dtype) for name, x in tensors.items()},
    tensors.values(),
  )
  (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


# --- adapter_config.json --------------------------------------------------------------------------


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise UserError(
      f"{path.parent} holds no {path.name}: it is not a LoRA adapter in PEFT's format"
    )
  try:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {"r": 8, "lora_alpha": 8, "target_modules": None, **settings}  # PEFT's defaults
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if settings.get("peft_type") != "LORA":
    raise UserError(f"{path}: peft_type is {settings.get('peft_type')!r}; only 'LORA' is supported")
  for name, value in settings.items():
    at_default = not value or value == "none"
    if name == "init_lora_weights":
      at_default = value in _PLAIN_INITS
    if not at_default and (name not in _HARMLESS | _READ or name == "init_lora_weights"):
      raise UserError(f"{path}: {name} is {value!r}, which is not supported")
  return settings


def _scale(settings: dict[str, Any], alpha: float, rank: int) -> float:
  return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
  """The value of the first pattern that matches the end of a module's name, by PEFT's rule."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", name):
      return value
  return default


# --- PEFT's tensors -------------------------------------------------------------------------------

Pairs = dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]  # (their module, layer): A, B


def _our_name(name: str) -> str:
  """A tensor's name without PEFT's prefix, and with the prefix of classes with a head."""
  name = name.removeprefix(_PREFIX)
  return name_map.PREFIX + name if re.match(r"(h\.\d+|wte|wpe|ln_f)\.", name) else name


def _matrices(config: ModelConfig) -> dict[str, name_map.Row]:
  """The rows of the name map that are matrices of a layer, by the name of their module."""
  return {
    row.hf_name.removesuffix(".weight"): row
    for row in name_map.LAYER_ROWS[config.model_type]
    if row.layout in ("linear", "conv1d")
  }


def _take_head(config, settings, tensors, file) -> dict[str, np.ndarray] | None:
  """Removes the head from the tensors, and returns its parameters; None if it was not saved."""
  name = name_map.HEAD_NAMES[config.head]
  if config.head == "lm" or f"{name}.weight" not in tensors:
    return None
  shapes = {"kernel": (config.hidden_size, config.head_size), "bias": (config.head_size,)}
  head = {"kernel": tensors.pop(f"{name}.weight").T}
  if config.head_bias:
    head["bias"] = tensors.pop(f"{name}.bias", np.zeros(0))
  for key, array in head.items():
    if array.shape != shapes[key]:
      raise UserError(
        f"{file}: the head {name} has a {key} of shape {array.shape}, and this model's is"
        f" {shapes[key]}"
      )
  return head


def _take_pairs(config: ModelConfig, tensors: dict[str, np.ndarray], file: pathlib.Path) -> Pairs:
  """Removes the factors from the tensors, and returns them by module and layer."""
  pairs = {}
  shapes = name_map.leaf_shapes(config)
  for module, row in _matrices(config).items():
    kernels = [shapes[f"blocks/layer_0/{path}"][1:] for path in row.paths]
    inputs = math.prod(kernels[0][: row.input_axes])
    outputs = sum(math.prod(shape[row.input_axes :]) for shape in kernels)
    for layer in range(config.num_layers):
      names = [f"{name_map.PREFIX}h.{layer}.{module}.lora_{side}.weight" for side in "AB"]
      A, B = (tensors.pop(name, None) for name in names)
      if A is None and B is None:
        continue
      if A is None or B is None:
        raise UserError(f"{file} lacks {names[0] if A is None else names[1]}")
      if (A.shape[1:], B.shape[:1], A.shape[:1]) != ((inputs,), (outputs,), B.shape[1:]):
        raise UserError(
          f"{file}: {names[0]} and lora_B have shapes {A.shape} and {B.shape}; this model makes"
          f" them (r, {inputs}) and ({outputs}, r)"
        )
      pairs[module, layer] = A, B
  if not pairs:
    raise UserError(f"{file} holds no factors for a matrix of this model")
  return pairs


def _check_all_layers(config: ModelConfig, pairs: Pairs, file: pathlib.Path) -> None:
  for module in {module for module, _ in pairs}:
    for layer in range(config.num_layers):
      if (module, layer) not in pairs:
        raise UserError(
          f"{file} lacks {_PREFIX}{name_map.PREFIX}h.{layer}.{module}.lora_A.weight, and"
          " layers_to_transform does not leave that layer out"
        )


# --- our factors, and back ------------------------------------------------------------------------


def _to_tree(config: ModelConfig, settings, pairs: Pairs) -> dict[str, Any]:
  """Factors by our paths; zeros for layers without factors, and to pad lower ranks."""
  shapes = name_map.leaf_shapes(config)
  repeats = config.num_layers // config.period
  tree: dict[str, Any] = {}
  for module, row in _matrices(config).items():
    ranks = [a.shape[0] for (name, _), (a, _) in pairs.items() if name == module]
    for j in range(config.period):
      if not any((module, i) in pairs for i in range(j, config.num_layers, config.period)):
        continue
      r, start = max(ranks), 0
      for path in row.paths:
        shape = shapes[f"blocks/layer_{j}/{path}"][1:]
        in_shape, out_shape = shape[: row.input_axes], shape[row.input_axes :]
        outputs = math.prod(out_shape)
        a = np.zeros((repeats, math.prod(in_shape), r), np.float32)
        b = np.zeros((repeats, r, outputs), np.float32)
        scale = np.zeros(repeats, np.float32)
        for n in range(repeats):
          layer = n * config.period + j
          name = f"{name_map.PREFIX}h.{layer}.{module}"
          if (module, layer) not in pairs:
            continue
          A, B = pairs[module, layer]
          rank = A.shape[0]
          alpha = _pattern(settings.get("alpha_pattern"), name, settings["lora_alpha"])
          scale[n] = _scale(settings, alpha, rank)
          a[n, :, :rank] = A.T
          b[n, :rank] = B[start : start + outputs].T
        start += outputs
        *parents, _ = f"blocks/layer_{j}/{path}".split("/")
        node = tree
        for parent in parents:
          node = node.setdefault(parent, {})
        node |= {
          "lora_a": a.reshape(repeats, *in_shape, r),
          "lora_b": b.reshape(repeats, r, *out_shape),
          "lora_scale": scale,
        }
  return tree


def _first_scale(adapter: dict[str, Any]) -> float:
  """The scale of a pair of factors; others are in their B, over this one."""
  scales = [
    float(np.max(np.abs(leaf)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapter)
    if path[-1].key == "lora_scale"
  ]
  return next((scale for scale in scales if scale), 1.0)


def _to_pairs(
  config: ModelConfig, adapter: dict[str, Any], scale: float
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """PEFT's tensors by name, and the rank of each module that has factors."""
  tensors, ranks = {}, {}
  shapes = name_map.leaf_shapes(config)
  for module, row in _matrices(config).items():
    for j in range(config.period):
      parents = [f"blocks/layer_{j}/{path.rpartition('/')[0]}" for path in row.paths]
      nodes = [lora.at(adapter, parent) for parent in parents]
      if not any(nodes):
        continue
      sizes = [
        math.prod(shapes[f"blocks/layer_{j}/{path}"][1 + row.input_axes :]) for path in row.paths
      ]
      for n in range(config.num_layers // config.period):
        A, B = _joined([node and _slices(node, n, scale) for node in nodes], sizes)
        name = f"{_PREFIX}{name_map.PREFIX}h.{n * config.period + j}.{module}"
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        ranks[module] = max(ranks.get(module, 0), A.shape[0])
  for name, x in tensors.items():  # the layers of a period may differ in rank
    module = next(m for m in ranks if f".{m}.lora_" in name)
    short = ranks[module] - min(x.shape[0] if "lora_A" in name else x.shape[1], ranks[module])
    widths = ((0, short), (0, 0)) if "lora_A" in name else ((0, 0), (0, short))
    tensors[name] = np.ascontiguousarray(np.pad(x, widths))
  return tensors, ranks


def _joined(parts: list[Any], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
  """One A (r, in) and B (out, r) for concatenated matrices: q, k and v of GPT-2.

  If all have the same A, it is A of the result; else the A are concatenated along r, and B is
  block-diagonal.
  """
  present = [part for part in parts if part]
  shared = all(np.array_equal(part[0], present[0][0]) for part in present)
  rows, columns, done = [], [], 0
  width = present[0][0].shape[0] if shared else sum(part[0].shape[0] for part in present)
  for part, size in zip(parts, sizes):
    block = np.zeros((size, width), np.float32)
    if part:
      A, B = part
      if shared:
        block[:] = B
      else:
        block[:, done : done + A.shape[0]] = B
        done += A.shape[0]
      columns.append(A)
    rows.append(block)
  return (present[0][0] if shared else np.concatenate(columns)), np.concatenate(rows)


def _slices(node: dict[str, Any], n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """PEFT's A (r, in) and B (out, r) of one layer, for factors that are scaled by `scale`."""
  a, b = (np.asarray(node[name][n], np.float32) for name in ("lora_a", "lora_b"))
  r, own = a.shape[-1], float(node["lora_scale"][n])
  return a.reshape(-1, r).T, (own / scale * b).reshape(r, -1).T.astype(np.float32)
