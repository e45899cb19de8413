"""`attend` chooses a backend for a layer, when it is traced, by hardware, shape and mask."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from gptneo_jax.attention import blocked, cudnn, reference, splash
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.partition import per_device
from gptneo_jax.attention.request import AttentionRequest, request_of

_log = logging.getLogger(__name__)

BACKENDS: dict[str, Callable[..., jax.Array]] = {
  "reference": reference.attend,
  "blocked": blocked.attend,
  "cudnn": cudnn.attend,
  "splash": splash.attend,
}
_REASONS: dict[str, Callable[[AttentionRequest], str | None]] = {
  "cudnn": cudnn.unsupported_reason,
  "splash": splash.unsupported_reason,
}
KERNELS = {"gpu": "cudnn", "tpu": "splash"}  # made for one platform; split by `per_device`
_FAMILIES = ("auto", "xla")
_SHORT = 128  # tokens up to which all scores at once are no more than those of a few blocks


def unsupported_reason(impl: str, request: AttentionRequest) -> str | None:
  """Why a backend cannot serve a request, None if it can. ValueError for an unknown one."""
  if impl not in BACKENDS:
    choices = ", ".join((*_FAMILIES, *BACKENDS))
    raise ValueError(f"unknown attention backend {impl!r}; there are: {choices}")
  return _REASONS[impl](request) if impl in _REASONS else None


def resolve(impl: str, request: AttentionRequest) -> str:
  """Name of the backend to use for `impl`; ValueError with the reason if it cannot serve.

  'auto' is the hardware's own kernel if that can serve, else what 'xla' is: 'blocked', unless
  the sequence is hardly longer than one. The choice of 'auto' is logged once.
  """
  if impl not in _FAMILIES:
    if reason := unsupported_reason(impl, request):
      raise ValueError(f"attention backend {impl!r} cannot serve here: {reason}")
    return impl
  chosen, notes = "blocked" if request.length > _SHORT else "reference", ()
  kernel = KERNELS.get(request.hardware.platform)
  if impl == "auto" and kernel is not None:
    reason = unsupported_reason(kernel, request)
    if reason is None:
      chosen = kernel
    else:
      notes = (f"{kernel}: {reason}",)
  if request.length > 1:  # parameters are made with one token
    layers = f"window {request.window}" if request.windowed else "all keys before"
    _say_once(f"attention ({layers}, {request.dtype}, {request.hardware}): {chosen}", notes)
  return chosen


@functools.cache
def _say_once(text: str, notes: tuple[str, ...]) -> None:
  _log.info("; ".join((text, *notes)))


def attend(
  q_BxTxHxK: jax.Array,
  k_BxTxHxK: jax.Array,
  v_BxTxHxK: jax.Array,
  spec: MaskSpec,
  *,
  scale: float,
  impl: str = "auto",
  dropout: Dropout | None = None,
  partition: PartitionSpec | None = None,
) -> jax.Array:
  """Multi-head self-attention, B x T x H x K, in the type of v; see `MaskSpec` for the mask.

  partition: how q, k and v are split over the mesh in use, for kernels, which XLA cannot split.
  """
  if not q_BxTxHxK.shape == k_BxTxHxK.shape == v_BxTxHxK.shape:
    raise ValueError(
      f"q, k and v differ in shape: {q_BxTxHxK.shape}, {k_BxTxHxK.shape}, {v_BxTxHxK.shape}"
    )
  name = resolve(impl, request_of(q_BxTxHxK, spec, dropout))
  backend = BACKENDS[name]
  if name in KERNELS.values():
    kernel = functools.partial(backend, scale=scale)
    return per_device(kernel, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec, partition)
  return backend(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, spec, scale, dropout)
