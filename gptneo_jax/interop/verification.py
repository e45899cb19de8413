"""Compares the outputs of a checkpoint with those of the Hugging Face model in PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.checkpoints.folder import is_checkpoint_folder, load_config
from gptneo_jax.checkpoints.lazy import open_params
from gptneo_jax.checkpoints.step_folders import existing_step, find_checkpoint
from gptneo_jax.config import VOCABULARY_TABLES, ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.interop import hub
from gptneo_jax.interop.hf_config import CLASSES
from gptneo_jax.model import heads
from gptneo_jax.model.matmul import exact_products

TOLERANCE = 1e-4  # of logits in float32, largest absolute difference
REPORT = "parity.json"

_SEED = 0
_OUTPUTS = {
  "question_answering": ("start_logits", "end_logits"),
  "double_heads": ("logits", "mc_logits"),
}


def verify(
  source: str,
  destination: str | os.PathLike,
  *,
  length: int | None = None,
  step: int | str | None = None,
) -> dict[str, Any]:
  """Runs both models on the same random ids, and writes DESTINATION/parity.json.

  One row of ids has no padding, the other has padding on the left, where outputs are not compared.
  Both sides compute in float32 from the weights as they are stored: the comparison measures the
  model and the conversion, not the rounding of a type.

  Args:
    source, destination: one is a checkpoint folder or FOLDER/STEP, the other a Hugging Face model.
    length: tokens of a row; default twice the window of local attention and 16 more, or the number
      of positions if that is less.
    step: number of the checkpoint, or 'best'; default the newest.

  Returns:
    the report, and the `file` that it is in. `not_finite` counts outputs that are NaN or infinite
    on either side: they are left out of the differences, and count as disagreement.

  Raises:
    UserError: neither or both are checkpoint folders, torch is not installed, or as `open_params`.
  """
  if not pathlib.Path(destination).is_dir():
    raise UserError(f"{destination}: no such folder")
  pair = source, destination
  checkpoint, hf_model = pair if _is_checkpoint(source) else reversed(pair)
  if not _is_checkpoint(checkpoint) or _is_checkpoint(hf_model):
    raise UserError(
      f"one of {source} and {destination} must be a gptneo_jax checkpoint folder, the other a"
      " Hugging Face model"
    )
  folder, number = find_checkpoint(checkpoint, step)
  step = existing_step(folder, number)
  config = load_config(folder).replace(dtype="float32", param_dtype="float32", vocab_multiple=1)
  T = length or min(config.max_position_embeddings, 2 * config.window_size + 16)
  if not 1 < T <= config.max_position_embeddings:
    raise UserError(
      f"the length is {T}; it must be at least 2 and at most the model's"
      f" {config.max_position_embeddings} positions"
    )
  ids_BxT, mask_BxT = _inputs(config, T)
  from gptneo_jax.interop import pytorch

  reference = pytorch.reference_outputs(
    hub.local_folder(str(hf_model)), CLASSES[config.head][config.model_type], ids_BxT, mask_BxT
  )
  params = _params(folder, step, config.vocab_size)
  found = _our_outputs(config, params, ids_BxT, mask_BxT)
  report = {
    **_compare(config, reference, found, mask_BxT),
    "first_weight_not_finite": first_not_finite(params),
    "tolerance": TOLERANCE,
    "computed_in": "float32",
    "length": T,
    "window": config.window_size if "local" in config.attention_pattern else None,
    "padding": int(T - mask_BxT[1].sum()),
    "step": step,
    "versions": {
      **{name: importlib.metadata.version(name) for name in ("gptneo_jax", "jax", "jaxlib")},
      **pytorch.versions(),
    },
  }
  file = pathlib.Path(find_checkpoint(destination)[0]) / REPORT
  file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
  return report | {"file": str(file)}


def first_not_finite(params: Any) -> str | None:
  """Path of the first array of a tree that holds NaN or infinity, or None."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if jnp.issubdtype(x.dtype, jnp.floating) and not _all_finite(x):
      return jax.tree_util.keystr(path, simple=True, separator="/")
  return None


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())


def _is_checkpoint(name: str | os.PathLike) -> bool:
  return is_checkpoint_folder(find_checkpoint(name)[0])


def _inputs(config: ModelConfig, T: int) -> tuple[np.ndarray, np.ndarray]:
  """Random ids, 2 x T, and their mask: the second row begins with padding."""
  ids_BxT = np.random.default_rng(_SEED).integers(config.vocab_size, size=(2, T), dtype=np.int32)
  mask_BxT = np.ones((2, T), np.int32)
  mask_BxT[1, : max(1, T // 8)] = 0
  return np.where(mask_BxT, ids_BxT, max(config.pad_token_id, 0)).astype(np.int32), mask_BxT


def _params(folder: str, step: int, vocab_size: int) -> dict[str, Any]:
  """The parameters of a checkpoint in float32, without padding of the vocabulary."""
  params: dict[str, Any] = {}
  for path, leaf in open_params(folder, step).items():
    *parents, name = path.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    rows = vocab_size if path in VOCABULARY_TABLES else None
    node[name] = jnp.asarray(leaf.load()[:rows], jnp.float32)
  return params


def _our_outputs(config: ModelConfig, params, ids_BxT, mask_BxT) -> list[list[np.ndarray]]:
  """Outputs row by row, like `pytorch.reference_outputs`."""
  module = heads.build(config)
  method = "logits" if config.head == "lm" else "outputs"

  @jax.jit
  def forward(params, ids_1xT, mask_1xT):
    outputs = module.apply(
      {"params": params},
      ids_1xT,
      positions_BxT=jnp.maximum(jnp.cumsum(mask_1xT, axis=-1) - 1, 0),
      segment_ids_BxT=mask_1xT,  # padding attends only to padding
      method=method,
    )
    return jax.tree.leaves(outputs)

  with exact_products(jnp.float32):
    return [
      [np.asarray(output) for output in forward(params, ids[None], mask[None])]
      for ids, mask in zip(ids_BxT, mask_BxT)
    ]


def _compare(config: ModelConfig, reference, found, mask_BxT: np.ndarray) -> dict[str, Any]:
  """Differences of outputs that are finite on both sides; others count as disagreement."""
  T = mask_BxT.shape[1]
  outputs = {name: [] for name in _OUTPUTS.get(config.head, ("logits",))}
  for theirs, ours, mask_T in zip(reference, found, mask_BxT):
    for values, expected, actual in zip(outputs.values(), theirs, ours, strict=True):
      expected, actual = np.atleast_1d(expected[0]), np.atleast_1d(actual[0])
      if expected.shape[0] == T:
        expected, actual = expected[mask_T == 1], actual[mask_T == 1]
      values.append(
        (expected, actual[..., : expected.shape[-1]])
      )  # without padding of the vocabulary
  report: dict[str, Any] = {}
  for name, rows in outputs.items():
    largest, size, agreement, not_finite = 0.0, 0.0, [], 0
    for expected, actual in rows:
      finite = np.isfinite(expected) & np.isfinite(actual)
      not_finite += int((~finite).sum())
      agrees = (expected.argmax(-1) == actual.argmax(-1)) & finite.all(-1)
      agreement.append(np.atleast_1d(agrees))
      expected, actual = np.where(finite, expected, 0), np.where(finite, actual, 0)
      largest = max(largest, float(np.abs(expected - actual).max()))
      size = max(size, float(np.abs(expected).max()))
    report[name] = {
      "max_abs_difference": largest,
      "max_rel_difference": largest / size if size else 0.0,
      "greedy_agreement": float(np.mean(np.concatenate(agreement))),
      "not_finite": not_finite,
    }
  worst = max(report.values(), key=lambda entry: entry["max_abs_difference"])
  return {
    **worst,
    "greedy_agreement": min(entry["greedy_agreement"] for entry in report.values()),
    "not_finite": sum(entry["not_finite"] for entry in report.values()),
    "outputs": report,
  }
