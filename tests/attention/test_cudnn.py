"""What is handed to cuDNN, read from the program compiled for it: no card is needed for that.

Values and gradients are the shared suite's (test_attention.py), on a card.
"""

import functools
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as fused

from gptneo_jax import attention
from gptneo_jax.attention import MaskSpec, cudnn, reference, residuals
from gptneo_jax.hardware import current_hardware
from tests.helpers.attention_truth import (
  NEEDS_GPU,
  dense_attention,
  left_padded,
  make_inputs,
  packed,
)

CALL = re.compile(r'custom_call @(__cudnn\$\w+)\(([^)]*)\).*?backend_config = "((?:[^"\\]|\\.)*)"')
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.fixture
def hopper(monkeypatch):
  """Lets the kernel be traced without a card: jax looks for one, and for cuDNN."""
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)


def program(function, *arguments):
  """StableHLO of a function for an NVIDIA card."""
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def calls(text):
  """The kernels that a program calls: name, number of operands, settings."""
  return [
    (
      name,
      operands.count("%"),
      json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"],
    )
    for name, operands, config in CALL.findall(text)
  ]


def gradients(window, scale=1.0):
  def loss(q, k, v, segment_ids_BxT):
    out = cudnn.attend(q, k, v, MaskSpec(window, segment_ids_BxT), scale)
    return out.astype(jnp.float32).sum()

  return jax.grad(loss, argnums=(0, 1, 2))


def abstract(T, dtype="bfloat16", B=2, H=3, K=64):
  x = jax.ShapeDtypeStruct((B, T, H, K), dtype)
  return x, x, x


@pytest.mark.parametrize("dtype, name", [("bfloat16", "BF16"), ("float16", "F16")])
@pytest.mark.parametrize("window, expected", [(None, 0), (256, 256), (1, 1), (640, 0), (1000, 0)])
def test_the_window_is_the_kernels_own(hopper, dtype, name, window, expected):
  """No mask is made: the kernel is told the number of keys, the query's own among them."""
  text = program(gradients(window, 0.125), *abstract(640, dtype), None)
  found = calls(text)
  assert [name for name, _, _ in found] == [FORWARD, BACKWARD]
  for _, _, config in found:
    assert config["mask_type"] == "CAUSAL"
    assert config["sliding_window_length"] == expected
    assert config["fmha_scale"] == 0.125
    assert config["dropout_rate"] == 0
    assert config["is_flash_attention"]
    assert config["intermediate_tensor_shape"]["element_type"] == name
  assert [operands for _, operands, _ in found] == [3, 6]  # q, k, v; statistics, dout, out
  assert "640x640" not in text


def test_segments_are_packed(hopper):
  ids = jax.ShapeDtypeStruct((2, 640), jnp.int32)
  text = program(gradients(256), *abstract(640), ids)
  found = calls(text)
  assert [name for name, _, _ in found] == [FORWARD, BACKWARD]
  for _, _, config in found:
    assert config["mask_type"] == "PADDING_CAUSAL"
    assert config["sliding_window_length"] == 256
    assert config["max_seg_per_batch"] == cudnn.MAX_SEGMENTS
  assert [operands for _, operands, _ in found] == [3 + 4, 6 + 4]  # lengths and starts
  assert text.count("stablehlo.case") == 2  # or in XLA, forward and backward
  assert "640x640" not in text


@pytest.mark.parametrize("T", [1, 61, 639])
@pytest.mark.parametrize("segmented", [False, True])
def test_odd_lengths_are_made_even(hopper, T, segmented):
  """The kernel has no backward pass for them."""
  ids = jax.ShapeDtypeStruct((2, T), jnp.int32) if segmented else None
  found = calls(program(gradients(256), *abstract(T), ids))
  assert [name for name, _, _ in found] == [FORWARD, BACKWARD]
  for _, _, config in found:
    assert config["intermediate_tensor_shape"]["dimensions"][-2:] == [str(T + 1)] * 2


@pytest.mark.parametrize("policy, forward", [(attention.residuals_saveable, 1), (None, 2)])
def test_remat_may_keep_what_the_kernel_computed(hopper, policy, forward):
  """The kernel runs again in the backward pass only if its results were not kept."""

  def loss(q, k, v):
    layer = jax.checkpoint(lambda *x: cudnn.attend(*x, MaskSpec(256), 1.0), policy=policy)
    return layer(q, k, v).astype(jnp.float32).sum()

  names = [name for name, _, _ in calls(program(jax.value_and_grad(loss), *abstract(640)))]
  assert (names.count(FORWARD), names.count(BACKWARD)) == (forward, 1)


def policy_sees(*inputs) -> set[str]:
  """Names of the primitives about which a remat policy is asked."""
  seen = set()

  def policy(primitive, *avals, **params):
    seen.add(primitive.name)
    return False

  layer = jax.checkpoint(lambda *x: cudnn.attend(*x, MaskSpec(256), 1.0), policy=policy)
  jax.make_jaxpr(jax.grad(lambda *x: layer(*x).astype(jnp.float32).sum()))(*inputs)
  return seen


def test_the_policy_is_asked_about_the_primitive_it_knows(hopper):
  """jax may rename what is private: then this says so."""
  assert residuals.CUDNN_PRIMITIVE in policy_sees(*abstract(640))


# --- segments as cuDNN takes them -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
  rows=st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3),
  M=st.integers(1, 6),
)
def test_runs_of_segments(rows, M):
  lengths_BxM, starts_BxM1, packs = cudnn.segment_runs(jnp.asarray(rows, jnp.int32), M)
  fits = True
  for row, lengths, starts in zip(rows, np.asarray(lengths_BxM), np.asarray(starts_BxM1)):
    begins = [i for i in range(9) if i == 0 or row[i] != row[i - 1]]
    fits &= len(begins) <= M and len({row[i] for i in begins}) == len(begins)
    if len(begins) <= M:
      expected = np.diff([*begins, 9]).tolist()
      assert lengths.tolist() == expected + [-1] * (M - len(begins))
      assert starts.tolist() == begins + [-1] * (M + 1 - len(begins))
  assert packs == fits


def as_documented(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type,
                  sliding_window_length):  # fmt: skip
  """Packed attention as jax documents it, for layouts without gaps; what is XLA's is wrong here."""
  assert mask_type == fused.MaskType.PADDING_CAUSAL
  position_1xTx1 = jnp.arange(q.shape[1])[None, :, None]
  begins = (q_offsets[:, None, :] >= 0) & (q_offsets[:, None, :] <= position_1xTx1)
  spec = MaskSpec(sliding_window_length, begins.sum(-1))
  return reference.attend(q, k, v, spec, scale)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("T", [60, 59])
def test_segments_give_the_same_values_packed_or_not(monkeypatch, window, T):
  monkeypatch.setattr(fused, "dot_product_attention", as_documented)
  q, k, v, dout = make_inputs(T)
  rng = np.random.default_rng(0)
  for ids, packs in (
    (left_padded(T, [0, 17]), True),
    (packed(T, [10, 1, 30, 19])[:1].repeat(2, 0), True),
    (packed(T, [10, 1, 30, T - 41]), False),  # turned round: the last document comes twice
    (rng.integers(0, 2, (2, T)), False),
    (np.arange(2 * T).reshape(2, T), False),  # more of them than there is room for
  ):
    ids = jnp.asarray(ids, jnp.int32)
    assert cudnn.segment_runs(ids, cudnn.MAX_SEGMENTS)[2] == packs
    out = cudnn.attend(q, k, v, MaskSpec(window, ids), 0.3)
    expected = dense_attention(q, k, v, window, np.asarray(ids), 0.3, dout)[0]
    np.testing.assert_allclose(out, expected, atol=5e-6)


# --- on a card ------------------------------------------------------------------------------------


def on_a_card(test):
  for mark in NEEDS_GPU:
    test = mark(test)
  return test


@on_a_card
@pytest.mark.parametrize("window", [None, 256])
@pytest.mark.parametrize("segmented", [False, True])
def test_a_whole_layer(window, segmented):
  if segmented and current_hardware().capability < cudnn.HOPPER:
    pytest.skip("segments need compute capability 9.0 or more")
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((2, 2048, 4, 128)), jnp.bfloat16) for _ in range(3))
  ids = jnp.asarray(packed(2048, [700, 50, 1298])[:1].repeat(2, 0)) if segmented else None

  def values(attend, *inputs):
    out, pullback = jax.vjp(lambda *x: attend(*x, MaskSpec(window, ids), 0.1), *inputs)
    return out, *pullback(jnp.ones_like(out))

  got = jax.jit(functools.partial(values, cudnn.attend))(q, k, v)
  with jax.default_matmul_precision("highest"):
    expected = jax.jit(functools.partial(values, reference.attend))(
      *(x.astype(jnp.float32) for x in (q, k, v))
    )
  for g, e in zip(got, expected):
    error = np.abs(np.asarray(g, np.float32) - np.asarray(e)).max() / np.abs(np.asarray(e)).max()
    assert error < 1.5e-2


@on_a_card
def test_the_policy_is_asked_about_the_primitive_it_knows_on_a_card():
  assert residuals.CUDNN_PRIMITIVE in policy_sees(*abstract(640))


@on_a_card
def test_the_window_skips_work():
  """At 8192 tokens a window of 256 hides 15/16 of what a causal mask shows."""
  rng = np.random.default_rng(0)
  inputs = [jnp.asarray(rng.standard_normal((4, 8192, 16, 64)), jnp.bfloat16) for _ in range(3)]
  seconds = {}
  for window in (None, 256):
    step = jax.jit(gradients(window))
    times = []
    for _ in range(8):
      start = time.perf_counter()
      jax.block_until_ready(step(*inputs, None))
      times.append(time.perf_counter() - start)
    seconds[window] = np.median(times[3:])
  print(f"forward and backward: global {seconds[None]:.4f} s, local {seconds[256]:.4f} s")
  assert seconds[256] < 0.4 * seconds[None]
