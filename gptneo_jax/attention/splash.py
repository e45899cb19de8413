"""Splash attention on TPU: JAX's Pallas kernel, which visits only blocks that the mask shows.

Scores and softmax are float32 and stay in the chip's vector memory. Rows may hold segments. The
kernel has no dropout.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp

from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.request import AttentionRequest, import_error
from gptneo_jax.attention.residuals import RESIDUALS

# Pallas for TPU is imported where the kernel is made: a machine without it runs all other backends.
if TYPE_CHECKING:
  from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
    BlockSizes,
    SplashAttentionKernel,
  )

_LIBRARY = "jax.experimental.pallas.ops.tpu.splash_attention"
_LANES = 128  # block sizes are multiples of the width of a vector register
_BLOCKS = (1024, 512, 256, _LANES)
_LOCAL_BLOCK = 512  # in a wider one most scores are masked, a narrower one is mostly overhead
_COMPUTE_BLOCK = 512  # keys that are multiplied at once
_FUSED_COPIES = 4  # partial query gradients that the fused backward kernel may leave in memory


def unsupported_reason(request: AttentionRequest) -> str | None:
  """Why this backend cannot serve a request, None if it can."""
  if request.hardware.platform != "tpu":
    return f"it runs on TPU, and this is {request.hardware.platform}"
  if request.dtype not in ("float32", "bfloat16"):
    return f"it computes float32 and bfloat16, not {request.dtype}"
  if request.dropout:
    return "it cannot drop attention probabilities"
  return import_error(_LIBRARY)


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  scale: float,
  dropout: Dropout | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Attention of the rows and heads of one device; see `partition.per_device` for more.

  interpret: runs the kernel's program in XLA, on any hardware and slowly: for tests.
  """
  if dropout is not None:
    raise ValueError("splash attention cannot drop attention probabilities")
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  T, H = q_BxTxHxK.shape[1:3]
  window = spec.window if spec.window is not None and spec.window < T else None
  block = _block(T, window is not None)
  padding = -T % block  # at the end: causal queries do not see it, and its own rows are cut off
  q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = (
    jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
    for x in (q_BxTxHxK * scale, k_BxTxHxK, v_BxTxHxK)
  )
  kernel = _kernel(T + padding, H, window, block, interpret)

  def row(q_HxTxK, k_HxTxK, v_HxTxK, ids_T) -> jax.Array:
    segments = None if ids_T is None else SegmentIds(ids_T, ids_T)
    return cast(jax.Array, kernel(q_HxTxK, k_HxTxK, v_HxTxK, segment_ids=segments))

  ids_BxT = spec.segment_ids_BxT
  if ids_BxT is not None:
    ids_BxT = jnp.pad(ids_BxT, ((0, 0), (0, padding)))
  out_BxHxTxK = jax.vmap(row)(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, ids_BxT)
  return out_BxHxTxK.swapaxes(1, 2)[:, :T]


@functools.lru_cache(maxsize=32)
def _kernel(
  T: int, H: int, window: int | None, block: int, interpret: bool
) -> SplashAttentionKernel:
  """The kernel for one shape of mask, with the blocks it visits worked out; made once."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as mask_info,
  )

  mask = masks.CausalMask((T, T))
  if window is not None:
    mask = masks.LocalMask((T, T), (window - 1, 0), 0)
  sizes = _block_sizes(T // block, block, window is not None)
  fused = sizes.use_fused_bwd_kernel
  # As the library's make_splash_mha does, but in NumPy throughout, which outlives the trace.
  every_head = masks.MultiHeadMask([mask] * H)
  forward, mask_function = mask_info.process_mask(every_head, (block, block))
  dq = None if fused else mask_info.process_mask(every_head, (block, block))[0]
  dkv, _ = mask_info.process_mask_dkv(every_head, (block, block), shrink_grid=not fused)
  return kernels.SplashAttentionKernel(
    forward,
    dq,
    dkv,
    block_sizes=sizes,
    is_mqa=False,
    save_residuals=False,
    mask_value=kernels.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=RESIDUALS,
    mask_function=mask_function,
    interpret=interpret,
  )


def _block(T: int, windowed: bool) -> int:
  """Queries, and keys, of a block: the largest that pads T by a quarter at most.

  Every step of the kernel's loop has a fixed overhead, which favours large blocks.
  """
  largest = _LOCAL_BLOCK if windowed else _BLOCKS[0]
  fitting = [b for b in _BLOCKS if b <= largest and -T % b <= T // 4]
  return fitting[0] if fitting else _LANES


def _block_sizes(blocks: int, block: int, windowed: bool) -> BlockSizes:
  """The kernel's settings for T of `blocks` blocks.

  The fused backward kernel computes the scores once for all three gradients, but leaves a partial
  gradient of q for every block of keys, and visits blocks outside the window for nothing: it serves
  global layers of few blocks.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

  compute = min(block, _COMPUTE_BLOCK)
  fused = not windowed and blocks <= _FUSED_COPIES
  return BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=compute,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=compute,
    block_q_dq=None if fused else block,
    block_kv_dq=None if fused else block,
    use_fused_bwd_kernel=fused,
  )
