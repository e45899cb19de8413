"""Flash attention by cuDNN, on NVIDIA cards from Ampere on, in bfloat16 and float16.

Causal masks and windows are the kernel's own: it skips the blocks that they hide, forward and
backward, and no mask array is made. Segments become cuDNN's packed layout, which needs Hopper,
visits nothing outside a segment, and has room for a fixed number of them per row; a batch with
more, or with a segment in two parts, is computed in XLA instead.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gptneo_jax.attention import blocked
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.request import AttentionRequest, import_error

AMPERE, HOPPER = (8, 0), (9, 0)
_PACKED_KERNEL = "jax._src.cudnn.fused_attention_stablehlo"  # jax.nn does not take segments
MAX_SEGMENTS = 32  # per row: each costs memory for the softmax statistics of all T


def unsupported_reason(request: AttentionRequest) -> str | None:
  """Why this backend cannot serve a request, None if it can."""
  platform, capability = request.hardware
  if platform != "gpu":
    return f"it runs on NVIDIA GPUs, and this is {platform}"
  if capability is None:
    return "it needs an NVIDIA card of compute capability 8.0 or more, and this one has none"
  if capability < AMPERE:
    return f"it needs compute capability 8.0 or more, and this card has {_text(capability)}"
  if request.dtype not in ("bfloat16", "float16"):
    return f"it computes bfloat16 and float16, not {request.dtype}"
  largest = 256 if capability >= HOPPER else 128
  if request.head_dim % 8 or request.head_dim > largest:
    return (
      f"it needs a head size that 8 divides, up to {largest}, and this one is {request.head_dim}"
    )
  if request.dropout:
    return "it cannot drop attention probabilities"
  if request.segments and capability < HOPPER:
    return (
      "for segments and padding it needs compute capability 9.0 or more, and this card has"
      f" {_text(capability)}"
    )
  if request.segments:
    return import_error(_PACKED_KERNEL)
  return None


def _text(capability: tuple[int, int]) -> str:
  return ".".join(map(str, capability))


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  scale: float,
  dropout: Dropout | None = None,
) -> jax.Array:
  """Attention of the rows and heads of one device; see `partition.per_device` for more."""
  if dropout is not None:
    raise ValueError("cuDNN attention cannot drop attention probabilities")
  T = q_BxTxHxK.shape[1]
  if T % 2:  # cuDNN has no backward pass for it: add a last token, which none before it sees
    ids_BxT = spec.segment_ids_BxT
    longer = MaskSpec(spec.window, None if ids_BxT is None else _with_one_more(ids_BxT))
    q, k, v = (_with_one_more(x) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
    return attend(q, k, v, longer, scale)[:, :T]
  window = spec.window if spec.window is not None and spec.window < T else None
  if spec.segment_ids_BxT is None:
    return jax.nn.dot_product_attention(
      q_BxTxHxK,
      k_BxTxHxK,
      v_BxTxHxK,
      scale=scale,
      is_causal=True,
      local_window_size=None if window is None else (window - 1, 0),
      implementation="cudnn",
    )
  from jax._src.cudnn import fused_attention_stablehlo as fused  # _PACKED_KERNEL

  lengths_BxM, starts_BxM1, packs = segment_runs(spec.segment_ids_BxT, MAX_SEGMENTS)

  def packed(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK):
    return fused.dot_product_attention(
      q_BxTxHxK,
      k_BxTxHxK,
      v_BxTxHxK,
      q_seqlen=lengths_BxM,
      kv_seqlen=lengths_BxM,
      q_offsets=starts_BxM1,
      kv_offsets=starts_BxM1,
      scale=scale,
      mask_type=fused.MaskType.PADDING_CAUSAL,
      sliding_window_length=window,
    )

  def in_xla(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK):
    return blocked.attend(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec, scale)

  return jax.lax.cond(packs, packed, in_xla, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK)


def _with_one_more(x_BxT: jax.Array) -> jax.Array:
  """B x T x … with the last of T twice."""
  return jnp.concatenate([x_BxT, x_BxT[:, -1:]], axis=1)


def segment_runs(ids_BxT: jax.Array, M: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Segments in cuDNN's packed layout.

  Returns the lengths of each row's runs of equal ids, int32 B x M, and their first positions, B x
  (M + 1), both padded with -1; and whether these describe the ids fully: no row has more than M
  runs, and no id has two.
  """
  B, T = ids_BxT.shape
  begins_BxT = jnp.concatenate([jnp.ones((B, 1), bool), ids_BxT[:, 1:] != ids_BxT[:, :-1]], axis=1)
  find = functools.partial(jnp.nonzero, size=M + 1, fill_value=T)
  starts_BxM1 = jax.vmap(lambda begins_T: find(begins_T)[0])(begins_BxT).astype(jnp.int32)
  is_run_BxM = starts_BxM1[:, :-1] < T
  lengths_BxM = jnp.where(is_run_BxM, starts_BxM1[:, 1:] - starts_BxM1[:, :-1], -1)

  run_ids_BxM = jnp.take_along_axis(ids_BxT, jnp.minimum(starts_BxM1[:, :-1], T - 1), axis=1)
  same_BxMxM = run_ids_BxM[:, :, None] == run_ids_BxM[:, None, :]
  both_BxMxM = is_run_BxM[:, :, None] & is_run_BxM[:, None, :] & ~jnp.eye(M, dtype=bool)[None]
  packs = (starts_BxM1[:, -1] == T).all() & ~(same_BxMxM & both_BxMxM).any()
  return lengths_BxM, jnp.where(starts_BxM1 < T, starts_BxM1, -1), packs
