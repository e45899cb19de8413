"""Every attention backend against one dense float64 attention, values and gradients.

The truth is written query by query from the definition of the mask, with its own backward pass, and
shares nothing with the package. Errors are relative to the largest entry of what is compared.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax import attention
from gptneo_jax.attention import BACKENDS, Dropout, MaskSpec, attend, blocked
from gptneo_jax.attention.blocked import block_size

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests take time for
TOLERANCE = 2e-6  # float32; the largest seen is 9e-7


def dense_attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, window, segments_BxT, scale, dout_BxTxHxK):
  """Output and the gradients of <out, dout> for q, k and v, float64."""
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
      dscores_SxH = scale * probs_SxH * (dprobs_SxH - (probs_SxH * dprobs_SxH).sum(0))
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

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both(q, k, v, dout, spec):
    call = functools.partial(BACKENDS[backend], spec=spec, scale=scale, **options)
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
  tolerance=TOLERANCE,
  seed=0,
  options=(),
  **shape,
):
  """Values and gradients of a backend against the truth."""
  inputs = make_inputs(T, seed=seed, **shape)
  scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
  segments = None if segments_BxT is None else jnp.asarray(segments_BxT, jnp.int32)
  got = run(backend, *inputs, MaskSpec(window, segments), scale, **dict(options))
  numbers = [np.asarray(x.astype(jnp.float32)) for x in inputs]
  expected = dense_attention(*numbers[:3], window, segments_BxT, scale, numbers[3])
  for name, g, e in zip(("out", "dq", "dk", "dv"), got, expected):
    assert g.dtype == inputs[0].dtype, name
    # Where a query sees one key only, its q and k get no gradient at all.
    error = relative_error(g, e) if np.abs(e).max() > 1e-12 else np.abs(np.asarray(g)).max()
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


# T below, at, just past and far past the window, and not a multiple of any block.
CASES = [
  (1, 1), (5, 1), (1, 2), (13, 2),
  (5, 7), (7, 7), (8, 7), (9, 7), (61, 7),
  (255, 256), (256, 256), (257, 256), (700, 256),
]  # fmt: skip
EVERY_BACKEND = pytest.mark.parametrize("backend", sorted(BACKENDS))


@EVERY_BACKEND
@pytest.mark.parametrize("T, window", CASES)
def test_windows(backend, T, window):
  check(backend, T, window)


@EVERY_BACKEND
@pytest.mark.parametrize("T", [1, 2, 33, 300])
def test_global(backend, T):
  check(backend, T, None)


@EVERY_BACKEND
@pytest.mark.parametrize("window", [1, 5, 16])
def test_packed_segments(backend, window):
  check(backend, 47, window, packed(47, [1, 9, 20, 2, 15]))


@EVERY_BACKEND
def test_left_padding(backend):
  check(backend, 30, 8, left_padded(30, [0, 11]))


@EVERY_BACKEND
@pytest.mark.parametrize("H, K", [(1, 1), (3, 5), (2, 17)])
def test_odd_heads(backend, H, K):
  check(backend, 21, 6, H=H, K=K)


@EVERY_BACKEND
def test_unscaled_scores_of_gpt_neo(backend):
  check(backend, 40, 8, scale=1.0, K=64, tolerance=1e-5)


@EVERY_BACKEND
def test_bfloat16(backend):
  """Inputs and result are bfloat16 (8 bits); what lies between is not rounded further than P."""
  check(backend, 75, 16, packed(75, [40, 35]), dtype=jnp.bfloat16, tolerance=1.5e-2)


@EVERY_BACKEND
def test_float16_with_left_padding_has_no_nan(backend):
  """Scores beyond float16's largest number, and rows that see nothing but padding."""
  q, k, v, dout = make_inputs(24, dtype=jnp.float16)
  spec = MaskSpec(8, jnp.asarray(left_padded(24, [10, 23])))
  for x in run(backend, 100 * q, 100 * k, v, dout, spec, 1.0):
    assert x.dtype == jnp.float16
  out, *grads = run(backend, q, k, v, dout, spec, 1.0)
  assert all(np.isfinite(np.asarray(x)).all() for x in (out, *grads))
  assert np.isfinite(np.asarray(run(backend, 100 * q, 100 * k, v, dout, spec, 1.0)[0])).all()


@pytest.mark.parametrize("block", [1, 2, 3, 7, 8, 16, 64])
def test_block_sizes(block):
  check("blocked", 29, 7, packed(29, [13, 16]), options={"block": block})


@settings(max_examples=12, deadline=None)
@given(
  T=st.integers(1, 70),
  window=st.one_of(st.none(), st.integers(1, 80)),
  block=st.one_of(st.none(), st.integers(1, 40)),
  lengths=st.lists(st.integers(1, 30), max_size=5),
  seed=st.integers(0, 99),
)
@example(T=17, window=16, block=16, lengths=[], seed=0)
def test_blocks_equal_the_definition(T, window, block, lengths, seed):
  segments_BxT = packed(T, lengths, B=1) if lengths else None
  check("blocked", T, window, segments_BxT, seed=seed, B=1, H=1, K=3, options={"block": block})


@EVERY_BACKEND
@pytest.mark.parametrize("mistake", [None, 6, 8])
def test_a_wrong_window_is_noticed(backend, mistake):
  """The suite would fail if a backend forgot its window, or was off by one key."""
  q, k, v, dout = make_inputs(20)
  out = run(backend, q, k, v, dout, MaskSpec(mistake), 1.0)[0]
  expected = dense_attention(q, k, v, 7, None, 1.0, dout)[0]
  errors_T = np.abs(np.asarray(out, np.float64) - expected).max((0, 2, 3))
  first = 6 if mistake == 6 else 7  # the first query that sees fewer, or more, keys than it should
  assert errors_T[:first].max() < 1e-5 < 1e-3 < errors_T[first]


def test_resolve():
  assert attention.resolve("auto", 2048) == "blocked"
  assert attention.resolve("auto", 64) == "reference"
  with pytest.raises(ValueError, match=r"unknown attention backend 'flash'.*auto"):
    attention.resolve("flash", 2048)
  q, k, v, _ = make_inputs(4)
  with pytest.raises(ValueError, match="differ in shape"):
    attend(q, k[:, :3], v, MaskSpec(2), scale=1.0)
  with pytest.raises(ValueError, match="window is 0"):
    MaskSpec(0)


def test_attend_takes_the_backend_it_is_told():
  q, k, v, dout = make_inputs(12)
  expected = dense_attention(q, k, v, 4, None, 1.0, dout)[0]
  for impl in ("auto", "reference", "blocked"):
    out = attend(q, k, v, MaskSpec(4), scale=1.0, impl=impl)
    assert relative_error(out, expected) < 1e-5


# --- dropout ---------------------------------------------------------------------------------


def test_dropout_rate_and_scale():
  dropped = np.asarray(Dropout(0.3, jax.random.key(0))(jnp.ones((400, 400))))
  assert (dropped == 0).mean() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400**2) ** 0.5)
  np.testing.assert_allclose(dropped[dropped > 0], 1 / 0.7, rtol=1e-6)
  assert Dropout(0.3, jax.random.key(0))(jnp.ones(9, jnp.bfloat16)).dtype == jnp.bfloat16


@EVERY_BACKEND
def test_dropout_of_probabilities(backend):
  """The key decides; the mean over keys is the undropped output."""
  q, k, v, _ = make_inputs(11, K=4)
  spec, scale, count = MaskSpec(5), 0.5, 300

  def dropped(key):
    return BACKENDS[backend](q, k, v, spec, scale, Dropout(0.25, key))

  keys = jax.random.split(jax.random.key(1), count)
  keys = jnp.concatenate([keys, keys[:1]])
  samples = np.asarray(jax.jit(jax.vmap(dropped), compiler_options=QUICK)(keys))
  np.testing.assert_array_equal(samples[0], samples[count])
  assert np.abs(samples[0] - samples[1]).max() > 0.01
  samples = samples[:count]
  expected = np.asarray(BACKENDS[backend](q, k, v, spec, scale))
  error = np.abs(samples.mean(0) - expected)
  assert (error <= 5 * samples.std(0) / count**0.5 + 1e-6).all()
  # Query 0 sees one key, with probability 1: it is dropped at the rate asked for.
  zero = (samples[:, :, 0] == 0).all(-1).mean()
  assert zero == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / (count * 4)) ** 0.5)


# --- cost ------------------------------------------------------------------------------------


def jaxprs_in(jaxpr):
  """A jaxpr and all those inside its equations."""
  yield jaxpr
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      for leaf in jax.tree.leaves(
        value, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
      ):
        inner = getattr(leaf, "jaxpr", leaf)
        if hasattr(inner, "eqns"):
          yield from jaxprs_in(inner)


def value_and_grads(backend, window):
  def loss(q, k, v, segments_BxT):
    return BACKENDS[backend](q, k, v, MaskSpec(window, segments_BxT), 1.0).sum()

  return jax.value_and_grad(loss, argnums=(0, 1, 2))


def abstract_inputs(T, B=1, H=2, K=4):
  x = jax.ShapeDtypeStruct((B, T, H, K), jnp.float32)
  return x, x, x, jax.ShapeDtypeStruct((B, T), jnp.int32)


def largest_intermediate(backend, T, window):
  closed = jax.make_jaxpr(value_and_grads(backend, window))(*abstract_inputs(T))
  shapes = [
    var.aval.shape
    for jaxpr in jaxprs_in(closed.jaxpr)
    for equation in jaxpr.eqns
    for var in equation.outvars
  ]
  square = any(sum(size >= T for size in shape) >= 2 for shape in shapes)
  return max(int(np.prod(shape)) for shape in shapes), square


@pytest.mark.parametrize("window", [None, 64])
def test_blocks_make_nothing_of_size_t_by_t(window):
  T, H, K = 4096, 2, 4
  size, square = largest_intermediate("blocked", T, window)
  assert not square
  b = block_size(T, window)
  assert size <= max(H * b * b, H * T * K)  # the scores of one pair of blocks, or an input
  size, square = largest_intermediate("reference", T, window)  # what the walk would find
  assert square and size >= T * T


@pytest.mark.parametrize("window", [None, 64])
def test_memory_grows_linearly(window):
  lengths = [2048, 4096, 8192]  # where the block has its largest size
  sizes = []
  for T in lengths:
    compiled = jax.jit(value_and_grads("blocked", window)).lower(*abstract_inputs(T)).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  print("temporary bytes of forward and backward:", dict(zip(lengths, sizes)))
  assert sizes[0] > 0
  for shorter, longer in itertools.pairwise(sizes):
    assert longer <= 2.05 * shorter  # less where XLA finds a better schedule


@pytest.mark.parametrize("window, expected", [(None, 10), (256, 3 * 16 - 3)])
def test_pairs_beyond_the_mask_are_not_visited(window, expected):
  """At T = 2048: 4 blocks of 512 and those below the diagonal; 16 of 128 with two before each."""
  plan = blocked.Plan(block_size(2048, window), window, 1.0, 0.0)
  assert len(plan.pairs(2048)) == expected
