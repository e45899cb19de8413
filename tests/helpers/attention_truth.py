"""Attention by its definition, in float64, and the check of a backend against it.

The truth is written query by query from the definition of the mask, with its own backward pass, and
shares nothing with the package. Errors are relative to the largest entry of what is compared.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.attention import BACKENDS, MaskSpec
from gptneo_jax.hardware import current_hardware

AS_TYPED = {"xla_allow_excess_precision": False}  # what is rounded to 16 bits stays rounded
TOLERANCE = 2e-6  # float32; the largest seen is 9e-7
BFLOAT16_TOLERANCE = (
  1.5e-2  # 8 bits in, 8 bits out; what lies between is not rounded further than P
)


class Subject(NamedTuple):
  """A backend under test: how it is called, and what of the suite it cannot do."""

  name: str
  options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
  dtype: str = "float32"  # of the inputs, where a test does not choose it
  tolerance: float = TOLERANCE
  odd_heads: bool = True
  float16: bool = True
  dropout: bool = True
  marks: tuple[pytest.MarkDecorator, ...] = ()


def gpu_capability():
  """Compute capability of the GPU that these tests run on, (0, 0) if there is none."""
  return current_hardware().capability or (0, 0)


NEEDS_GPU = (
  pytest.mark.gpu,
  pytest.mark.skipif(
    gpu_capability() < (8, 0), reason="needs an NVIDIA card of compute capability 8.0 or more"
  ),
)
SUBJECTS = [
  Subject("reference"),
  Subject("blocked"),
  Subject("splash", options={"interpret": True}, float16=False, dropout=False),
  Subject(
    "cudnn", dtype="bfloat16", tolerance=BFLOAT16_TOLERANCE, odd_heads=False, dropout=False,
    marks=NEEDS_GPU,
  ),
]  # fmt: skip


def every_backend(**abilities: bool):
  """Runs a test with each backend that has all these abilities."""
  able = [
    s for s in SUBJECTS if all(getattr(s, name) == wanted for name, wanted in abilities.items())
  ]
  params = [pytest.param(subject, id=subject.name, marks=subject.marks) for subject in able]
  return pytest.mark.parametrize("backend", params)


def dense_attention(
  q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, window, segments_BxT, scale, dout_BxTxHxK, stored_BxTxHxK=None
):
  """Output and the gradients of <out, dout> for q, k and v, float64.

  stored: the output as a kernel rounded it. Kernels of FlashAttention's kind take the mean gradient
  of the probabilities, <out, dout>, from it, and so does this backward pass then.
  """
  q, k, v, dout = (
    np.asarray(x, np.float64) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, dout_BxTxHxK)
  )
  out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(q), np.zeros_like(q)
  B, T, _, _ = q.shape
  for b in range(B):
    for i in range(T):
      first = 0 if window is None else max(0, i - window + 1)
      keys = [
        j
        for j in range(first, i + 1)
        if segments_BxT is None or segments_BxT[b, j] == segments_BxT[b, i]
      ]
      scores_SxH = scale * np.einsum("HK,SHK->SH", q[b, i], k[b, keys])
      probs_SxH = np.exp(scores_SxH - scores_SxH.max(0))
      probs_SxH /= probs_SxH.sum(0)
      out[b, i] = np.einsum("SH,SHK->HK", probs_SxH, v[b, keys])
      dprobs_SxH = np.einsum("HK,SHK->SH", dout[b, i], v[b, keys])
      if stored_BxTxHxK is None:
        mean_H = (probs_SxH * dprobs_SxH).sum(0)
      else:
        mean_H = np.einsum("HK,HK->H", dout[b, i], stored_BxTxHxK[b, i])
      dscores_SxH = scale * probs_SxH * (dprobs_SxH - mean_H)
      dq[b, i] = np.einsum("SH,SHK->HK", dscores_SxH, k[b, keys])
      dk[b, keys] += np.einsum("SH,HK->SHK", dscores_SxH, q[b, i])
      dv[b, keys] += np.einsum("SH,HK->SHK", probs_SxH, dout[b, i])
  return out, dq, dk, dv


def make_inputs(T, B=2, H=2, K=8, dtype=jnp.float32, seed=0):
  """q, k, v and the cotangent; rounded to dtype, so that the truth starts from the same numbers."""
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.standard_normal((B, T, H, K)), dtype) for _ in range(4))


def run(backend, q, k, v, dout, spec, scale, **options):
  """Output and gradients of one backend, compiled."""

  @functools.partial(jax.jit, compiler_options=AS_TYPED)
  def both(q, k, v, dout, spec):
    options_ = {**backend.options, **options}
    call = functools.partial(BACKENDS[backend.name], spec=spec, scale=scale, **options_)
    out, pullback = jax.vjp(call, q, k, v)
    return out, *pullback(dout)

  return both(q, k, v, dout, spec)


def relative_error(got, expected):
  return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


def check(
  backend,
  T,
  window,
  segments_BxT=None,
  *,
  scale=None,
  dtype=None,
  tolerance=0.0,
  seed=0,
  options=(),
  given_out=False,
  **shape,
):
  """Values and gradients of a backend against the truth, to its tolerance or a wider one.

  given_out: the true gradients start from the backend's own output, itself compared like the rest.
  """
  tolerance = max(tolerance, backend.tolerance)
  inputs = make_inputs(T, dtype=dtype or backend.dtype, seed=seed, **shape)
  scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
  segments = None if segments_BxT is None else jnp.asarray(segments_BxT, jnp.int32)
  got = run(backend, *inputs, MaskSpec(window, segments), scale, **dict(options))
  numbers = [np.asarray(x.astype(jnp.float32)) for x in inputs]
  stored = np.asarray(got[0], np.float64) if given_out else None
  expected = dense_attention(*numbers[:3], window, segments_BxT, scale, numbers[3], stored)
  for name, g, e in zip(("out", "dq", "dk", "dv"), got, expected):
    assert g.dtype == inputs[0].dtype, name
    # Where a query sees one key only, its q and k get no gradient at all.
    g32 = np.asarray(g, np.float32)
    error = relative_error(g32, e) if np.abs(e).max() > 1e-12 else np.abs(g32).max()
    assert error <= tolerance, f"{name}: {error:.2e}"


def packed(T, lengths, B=2):
  """Segment ids of documents of the given lengths, shifted from row to row."""
  ids_T = np.repeat(np.arange(len(lengths)), lengths)
  ids_T = (
    np.resize(ids_T, T) if len(ids_T) >= T else np.pad(ids_T, (0, T - len(ids_T)), mode="edge")
  )
  return np.stack([np.roll(ids_T, 3 * b) for b in range(B)]).astype(np.int32)


def left_padded(T, pads):
  """Segment 0 on the first pads[b] positions, 1 on the rest."""
  return (np.arange(T)[None] >= np.asarray(pads)[:, None]).astype(np.int32)
