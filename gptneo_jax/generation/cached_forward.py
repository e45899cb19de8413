"""The decoder with a cache of keys and values: the function of `model.Decoder`, T tokens at a time.

The same code serves the prompt (T in the hundreds), decoding (T = 1) and the checking of draft
tokens (T of a few). It runs unrolled over unstacked parameters (generation/unstacked.py).
Activations are x_DxBT, one column for each token: so each product is matrix · columns, which for
one column reads every weight exactly once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.attention.mask import MASKED
from gptneo_jax.config import ModelConfig
from gptneo_jax.generation import kv_cache
from gptneo_jax.generation.kv_cache import KVCache, LayerCache
from gptneo_jax.model.activations import activate
from gptneo_jax.model.decoder import layer_norm
from gptneo_jax.sharding import constrain


def forward_with_cache(
  config: ModelConfig,
  unstacked_params: Any,
  cache: KVCache,
  ids_BxT: jax.Array,
  column: jax.Array,
  count: jax.Array,
  left_pad_B: jax.Array,
) -> tuple[jax.Array, KVCache]:
  """Runs T new tokens through the model and appends their keys and values to the cache.

  Returns the hidden states after the final norm, D x B x T, and the new cache.

  column: where the first of them is stored. count: how many are real, at least 1; the results of
  those after them mean nothing. left_pad_B: columns of padding before each row, after which its
  positions begin.
  """
  B, T = ids_BxT.shape
  column_T = column + jnp.arange(T)
  positions_BxT = jnp.clip(
    column_T[None] - left_pad_B[:, None], 0, config.max_position_embeddings - 1
  )
  dtype = jnp.dtype(config.dtype)
  x_BxTxD = _embed(unstacked_params["wte"], ids_BxT).astype(dtype)
  x_BxTxD += jnp.take(unstacked_params["wpe"], positions_BxT, axis=0).astype(dtype)
  x_DxBT = x_BxTxD.reshape(B * T, -1).T
  new_cache = []
  for i, (kind, layer, layer_cache) in enumerate(
    zip(config.attention_layers, unstacked_params["layers"], cache)
  ):
    h_DxBT = _norm(config, layer["ln_1"], x_DxBT)
    qkv_3xHxKxBT = dense(layer["qkv"], h_DxBT, dtype)
    qkv_3xHxKxBxT = qkv_3xHxKxBT.reshape(*qkv_3xHxKxBT.shape[:3], B, T)
    q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = (
      constrain(jnp.transpose(one, (2, 0, 3, 1)), axes.BATCH, axes.ACT_HEADS, None, None)
      for one in qkv_3xHxKxBxT
    )
    scale = config.attention_scale
    if config.scale_attn_by_inverse_layer_idx:
      scale /= i + 1
    y_BxHxTxK, layer_cache = _attend(
      q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, layer_cache, column, count, left_pad_B,
      window=config.window_size if kind == "local" else None, scale=scale,
    )  # fmt: skip
    new_cache.append(layer_cache)
    y_HxKxBT = jnp.transpose(y_BxHxTxK, (1, 3, 0, 2)).reshape(*qkv_3xHxKxBT.shape[1:])
    x_DxBT += dense(layer["out"], y_HxKxBT, dtype, contracted=2)
    h_DxBT = _norm(config, layer["ln_2"], x_DxBT)
    h_FxBT = activate(dense(layer["c_fc"], h_DxBT, dtype), config.activation_function)
    x_DxBT += dense(layer["c_proj"], h_FxBT, dtype)
  return _norm(config, unstacked_params["ln_f"], x_DxBT).reshape(-1, B, T), tuple(new_cache)


def unembed(config: ModelConfig, unstacked_params: Any, x_DxB: jax.Array) -> jax.Array:
  """Next-token logits of B tokens, float32 B x V, V the true vocabulary."""
  table_VxD = unstacked_params["lm_head" if config.untied_lm_head else "wte"]
  # Without the barrier XLA on CPU takes the transposed product, which is slower by half.
  logits_VxB = jax.lax.optimization_barrier(matmul(table_VxD, x_DxB, jnp.float32))
  return logits_VxB.T[:, : config.vocab_size]


def dense(layer: Any, x: jax.Array, dtype: Any, contracted: int = 1) -> jax.Array:
  """A dense layer of columns: kernel · x + bias, … x BT.

  contracted: how many of the kernel's last axes are summed over with the first of x.
  """
  y = matmul(layer["kernel"], x, dtype, contracted)
  if "bias" in layer:
    y += layer["bias"].astype(dtype)[..., None]
  return y


def matmul(kernel: Any, x: jax.Array, dtype: Any, contracted: int = 1) -> jax.Array:
  """kernel (…, inner) · x (inner, BT), in `dtype`, the kernel rounded to the type of x.

  A quantized kernel (generation/quantization.py) brings its own product.
  """
  if hasattr(kernel, "matmul"):
    return kernel.matmul(x, dtype)
  inner = tuple(range(contracted))
  last = tuple(kernel.ndim - contracted + i for i in inner)
  return jax.lax.dot_general(
    kernel.astype(x.dtype), x, ((last, inner), ((), ())), preferred_element_type=dtype
  )


def _embed(table_VxD: Any, ids_BxT: jax.Array) -> jax.Array:
  if hasattr(table_VxD, "take_rows"):  # quantized
    return table_VxD.take_rows(ids_BxT)
  # Every device has all of a row before the look-up, as in model/decoder.py.
  return jnp.take(constrain(table_VxD, axes.VOCAB, None), ids_BxT, axis=0)


def _norm(config: ModelConfig, norm: Any, x_DxBT: jax.Array) -> jax.Array:
  return layer_norm(x_DxBT.T, norm["scale"], norm["bias"], config.layer_norm_epsilon).T


def _attend(
  q_BxHxTxK: jax.Array,
  k_BxHxTxK: jax.Array,
  v_BxHxTxK: jax.Array,
  cache: LayerCache,
  column: jax.Array,
  count: jax.Array,
  left_pad_B: jax.Array,
  *,
  window: int | None,
  scale: float,
) -> tuple[jax.Array, LayerCache]:
  """Attention of T new tokens to those in the cache and to themselves; the cache with them."""
  T = q_BxHxTxK.shape[2]
  column_T = column + jnp.arange(T)
  new_cache = kv_cache.write(cache, k_BxHxTxK, v_BxHxTxK, column, count, ring=window is not None)
  keys_BxHxSxK, values_BxHxSxK = kv_cache.view(new_cache)
  S = keys_BxHxSxK.shape[2]
  if window is None:
    key_column_S = jnp.arange(S)
  elif T == 1:
    key_column_S = kv_cache.ring_columns(S, column)
  else:
    # The last of many tokens overwrite keys that the first still attend to: these are taken from
    # the cache as it was.
    key_column_S = jnp.concatenate([kv_cache.ring_columns(S, column - 1), column_T])
    keys_BxHxSxK, values_BxHxSxK = (
      jnp.concatenate([old, new.astype(old.dtype)], axis=2)
      for old, new in zip(kv_cache.view(cache), (k_BxHxTxK, v_BxHxTxK))
    )
  key_column_1xS, column_Tx1 = key_column_S[None], column_T[:, None]
  visible_TxS = key_column_1xS <= column_Tx1
  if window is not None:
    visible_TxS &= key_column_1xS > column_Tx1 - window
  real_BxS = key_column_1xS >= left_pad_B[:, None]
  visible_Bx1xTxS = visible_TxS[None, None] & real_BxS[:, None, None]
  scores_BxHxTxS = jnp.einsum(
    "BHTK,BHSK->BHTS", q_BxHxTxK, keys_BxHxSxK, preferred_element_type=jnp.float32
  )
  scores_BxHxTxS = jnp.where(visible_Bx1xTxS, scores_BxHxTxS * scale, MASKED)
  probs_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1).astype(values_BxHxSxK.dtype)
  return jnp.einsum("BHTS,BHSK->BHTK", probs_BxHxTxS, values_BxHxSxK), new_cache
