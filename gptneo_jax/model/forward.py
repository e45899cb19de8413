"""Forward passes of a loaded model: ids are checked, padded to few lengths, compiled for once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gptneo_jax.axes import round_up
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.model import heads, intermediates
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways

BUCKET = 64  # lengths are rounded up to a multiple, so that new ones rarely recompile


def run(
  function: Any, config: ModelConfig, mesh: Mesh, params: Any, ids: Any,
  attention_mask: Any = None, position_ids: Any = None, **options: Any,
) -> tuple[Any, int]:  # fmt: skip
  """Runs one of the functions below on padded ids; its result without the rows added, and T.

  With an attention mask, positions count from the first real token unless they are given. Raises
  UserError.
  """
  ids_BxT = integers("ids", ids)
  if ids_BxT.ndim != 2 or ids_BxT.size == 0:
    raise UserError(f"ids have shape {ids_BxT.shape}; they are B x T, of at least one token")
  B, T = ids_BxT.shape
  limit = config.max_position_embeddings
  if T > limit:
    raise UserError(f"{T} tokens are {T - limit} more than the model's {limit} positions")
  _check_range("ids", ids_BxT, config.vocab_size)
  ways = batch_ways(mesh)
  width = min(round_up(T, BUCKET), limit)
  pad = functools.partial(np.pad, pad_width=((0, -B % ways), (0, width - T)))
  mask_BxT = positions_BxT = None
  if attention_mask is not None:
    mask_BxT = (_shaped("attention_mask", attention_mask, B, T) != 0).astype(np.int32)
    positions_BxT = np.maximum(mask_BxT.cumsum(-1) - 1, 0)
    mask_BxT = pad(mask_BxT)
  if position_ids is not None:
    positions_BxT = _shaped("position_ids", position_ids, B, T)
    _check_range("position_ids", positions_BxT, limit)
  if positions_BxT is not None:
    positions_BxT = pad(positions_BxT).astype(np.int32)
  token_B = options.get("token_B")
  if token_B is not None:
    options["token_B"] = np.pad(token_B, (0, -B % ways)).astype(np.int32)
  with jax.set_mesh(mesh), exact_products(config.dtype):
    results = function(
      heads.build(config), params, pad(ids_BxT).astype(np.int32),
      positions_BxT=positions_BxT, segment_ids_BxT=mask_BxT, **options,
    )  # fmt: skip
  return jax.tree.map(lambda x: x[:B], results), T


def token_of_row(config: ModelConfig, ids_BxT: np.ndarray, mc_token_ids: Any) -> np.ndarray | None:
  """The position of each row that the head reads, None if it reads all. Raises UserError."""
  B, T = ids_BxT.shape
  if mc_token_ids is not None and config.head != "double_heads":
    raise UserError(f"mc_token_ids are for double heads, and the head is {config.head!r}")
  if config.head == "sequence_classification":
    try:
      return heads.last_tokens(ids_BxT, config.pad_token_id)
    except ValueError as error:
      raise UserError(str(error)) from None
  if config.head != "double_heads":
    return None
  if mc_token_ids is None:
    return np.full(B, T - 1)
  token_B = integers("mc_token_ids", mc_token_ids).reshape(-1)
  if token_B.shape != (B,):
    raise UserError(f"mc_token_ids have shape {token_B.shape}, and the ids make it {(B,)}")
  _check_range("mc_token_ids", token_B, T)
  return token_B


@functools.partial(jax.jit, static_argnames=("module", "method"))
def outputs(module, params, ids_BxT, *, method, token_B, **options):
  """Logits over the true vocabulary, or what the head says."""
  if token_B is not None:
    options["token_B"] = token_B
  results = module.apply({"params": params}, ids_BxT, method=method, **options)
  V = module.config.vocab_size
  if module.config.head == "lm":
    return results[..., :V]
  if module.config.head == "double_heads":
    return results[0][..., :V], results[1]
  return results


@functools.partial(jax.jit, static_argnames="module")
def hidden_states(module, params, ids_BxT, **options):
  return intermediates.hidden_states(module, {"params": params}, ids_BxT, **options)


@functools.partial(jax.jit, static_argnames="module")
def attentions(module, params, ids_BxT, **options):
  return intermediates.attentions(module, {"params": params}, ids_BxT, **options)


def _shaped(name: str, values: Any, B: int, T: int) -> np.ndarray:
  array = integers(name, values)
  if array.size != B * T or array.shape[-1] != T:
    raise UserError(f"{name} have shape {array.shape}, and the ids make it {(B, T)}")
  return array.reshape(B, T)


def _check_range(name: str, array: np.ndarray, limit: int) -> None:
  if array.min() < 0 or array.max() >= limit:
    bad = array.min() if array.min() < 0 else array.max()
    raise UserError(f"{name} hold {bad}; the model takes 0 to {limit - 1}")


def integers(name: str, values: Any) -> np.ndarray:
  """An int64 array. Raises UserError, by name, for what is not made of whole numbers."""
  refuse_traced(name, values)
  try:
    array = np.asarray(values)
  except ValueError:
    array = np.asarray(None)
  if array.dtype.kind not in "iub" and array.size:
    raise UserError(f"{name} are not an array of whole numbers")
  return array.astype(np.int64)


def refuse_traced(name: str, values: Any) -> None:
  """Raises UserError for an array without values, as functions under jax.jit or jax.grad see."""
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
    raise UserError(
      f"{name} are traced, as under jax.jit or jax.grad: a loaded model compiles by itself, from"
      " outside; in functions of your own call heads.build(lm.config).apply({'params': params},"
      " ids, method='logits')"
    )
