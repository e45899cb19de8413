"""The decoder, a few tokens at a time: what `model.Decoder` computes, with keys and values kept.

One function serves the prompt (many tokens at once), decoding (one) and the checking of guesses (a
few). It runs unrolled over layered weights (generation/unstacked.py). Activations are x_DxN,
columns of N = B·T tokens: so each product is matrix · columns, which for one column reads a weight
exactly once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.attention.mask import MASKED
from gptneo_jax.config import ModelConfig
from gptneo_jax.generation.kv_cache import Cache, LayerCache, ring_columns, write
from gptneo_jax.model.activations import activate
from gptneo_jax.model.decoder import layer_norm
from gptneo_jax.sharding import constrain


def extend(
  config: ModelConfig,
  layered: Any,
  cache: Cache,
  ids_BxT: jax.Array,
  column: jax.Array,
  count: jax.Array,
  start_B: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Reads T tokens behind what the cache holds; hidden states after the final norm, D x B x T.

  column: of the first of them. count: how many are real, at least 1: those behind are no part of
  any row, and what comes out there means nothing. start_B: the column at which each row begins;
  positions count from there.
  """
  B, T = ids_BxT.shape
  column_T = column + jnp.arange(T)
  positions_BxT = jnp.clip(column_T - start_B[:, None], 0, config.max_position_embeddings - 1)
  dtype = jnp.dtype(config.dtype)
  x_BxTxD = _rows(layered["wte"], ids_BxT).astype(dtype)
  x_BxTxD += jnp.take(layered["wpe"], positions_BxT, axis=0).astype(dtype)
  x_DxN = x_BxTxD.reshape(B * T, -1).T
  new_cache = []
  for i, (kind, layer, layer_cache) in enumerate(
    zip(config.attention_layers, layered["layers"], cache)
  ):
    h_DxN = _norm(config, layer["ln_1"], x_DxN)
    qkv_3xHxKxN = project(layer["qkv"], h_DxN, dtype)
    qkv_3xHxKxBxT = qkv_3xHxKxN.reshape(*qkv_3xHxKxN.shape[:3], B, T)
    q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = (
      constrain(jnp.transpose(one, (2, 0, 3, 1)), axes.BATCH, axes.ACT_HEADS, None, None)
      for one in qkv_3xHxKxBxT
    )
    window = config.window_size if kind == "local" else None
    scale = config.attention_scale
    if config.scale_attn_by_inverse_layer_idx:
      scale /= i + 1
    y_BxHxTxK, layer_cache = _attend(
      q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, layer_cache, column, count, start_B, window,
      scale,
    )  # fmt: skip
    new_cache.append(layer_cache)
    y_HxKxN = jnp.transpose(y_BxHxTxK, (1, 3, 0, 2)).reshape(*qkv_3xHxKxN.shape[1:])
    x_DxN += project(layer["out"], y_HxKxN, dtype, contracted=2)
    h_DxN = _norm(config, layer["ln_2"], x_DxN)
    h_FxN = activate(project(layer["c_fc"], h_DxN, dtype), config.activation_function)
    x_DxN += project(layer["c_proj"], h_FxN, dtype)
  return _norm(config, layered["ln_f"], x_DxN).reshape(-1, B, T), tuple(new_cache)


def unembed(config: ModelConfig, layered: Any, x_DxN: jax.Array) -> jax.Array:
  """Logits, float32 N x V, V the true vocabulary."""
  table_VxD = layered["lm_head" if config.untied_lm_head else "wte"]
  # Kept apart, or XLA on CPU would take the transposed product, which is slower by half.
  logits_VxN = jax.lax.optimization_barrier(matmul(table_VxD, x_DxN, jnp.float32))
  return logits_VxN.T[:, : config.vocab_size]


def project(dense: Any, x: jax.Array, dtype: Any, contracted: int = 1) -> jax.Array:
  """kernel · x, … x N: contracts the last axes of the kernel with the first of x; adds the bias."""
  y = matmul(dense["kernel"], x, dtype, contracted)
  if "bias" in dense:
    y += dense["bias"].astype(dtype)[..., None]
  return y


def matmul(kernel: Any, x: jax.Array, dtype: Any, contracted: int = 1) -> jax.Array:
  """kernel (… , inner) · x (inner, N), in `dtype`, the kernel rounded to the type of x.

  A quantized kernel (generation/quantization.py) knows its own product.
  """
  if hasattr(kernel, "product"):
    return kernel.product(x, dtype)
  inner = tuple(range(contracted))
  last = tuple(kernel.ndim - contracted + i for i in inner)
  return jax.lax.dot_general(
    kernel.astype(x.dtype), x, ((last, inner), ((), ())), preferred_element_type=dtype
  )


def _rows(table_VxD: Any, ids_BxT: jax.Array) -> jax.Array:
  if hasattr(table_VxD, "rows"):
    return table_VxD.rows(ids_BxT)
  # Rows whole before they are looked up, as in model/decoder.py.
  return jnp.take(constrain(table_VxD, axes.VOCAB, None), ids_BxT, axis=0)


def _norm(config: ModelConfig, norm: Any, x_DxN: jax.Array) -> jax.Array:
  return layer_norm(x_DxN.T, norm["scale"], norm["bias"], config.layer_norm_epsilon).T


def _attend(
  q_BxHxTxK: jax.Array,
  k_BxHxTxK: jax.Array,
  v_BxHxTxK: jax.Array,
  cache: LayerCache,
  column: jax.Array,
  count: jax.Array,
  start_B: jax.Array,
  window: int | None,
  scale: float,
) -> tuple[jax.Array, LayerCache]:
  """Attention of T new tokens to what is kept and to themselves, and the cache with them in it."""
  T, S = q_BxHxTxK.shape[2], cache.k.shape[-2]
  q, k, v = q_BxHxTxK, k_BxHxTxK, v_BxHxTxK  # … x H x T x K, with B in front if the cache has it
  if cache.k.ndim == 3:
    q, k, v = q[0], k[0], v[0]
  column_T = column + jnp.arange(T)
  new_cache = write(cache, k, v, column, count, ring=window is not None)
  # The written cache is to be one array, read where it lies: XLA on CPU might else write it twice,
  # once for the loop to carry and once for the product.
  new_cache = jax.lax.optimization_barrier(new_cache)
  keys, values = new_cache
  if window is None:
    key_column_S = jnp.arange(S)
  elif T == 1:
    key_column_S = ring_columns(S, column)
  else:
    # The last of many tokens overwrite what the first still see: those look at what was there.
    key_column_S = jnp.concatenate([ring_columns(S, column - 1), column_T])
    keys = jnp.concatenate([cache.k, k.astype(cache.k.dtype)], axis=-2)
    values = jnp.concatenate([cache.v, v.astype(cache.v.dtype)], axis=-2)
  visible_TxS = key_column_S <= column_T[:, None]
  if window is not None:
    visible_TxS &= key_column_S > column_T[:, None] - window
  visible_BxTxS = visible_TxS & (key_column_S >= start_B[:, None, None])
  visible = visible_BxTxS[:, None] if keys.ndim == 4 else visible_BxTxS
  scores = jnp.einsum("...TK,...SK->...TS", q, keys, preferred_element_type=jnp.float32)
  scores = jnp.where(visible, scores * scale, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  y = jnp.einsum("...TS,...SK->...TK", probs, values)
  return y.reshape(q_BxHxTxK.shape), new_cache
