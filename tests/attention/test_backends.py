"""Every attention backend against one dense float64 attention, values and gradients.

The truth is written query by query from the definition of the mask, with its own backward pass, and
shares nothing with the package. Errors are relative to the largest entry of what is compared. A new
backend is one more row of SUBJECTS; what only one backend does is tested in a file of its own.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.attention import BACKENDS, Dropout, MaskSpec, blocked
from gptneo_jax.attention.blocked import block_size
from tests.helpers.attention_truth import (
  BFLOAT16_TOLERANCE,
  SUBJECTS,
  check,
  dense_attention,
  every_backend,
  left_padded,
  make_inputs,
  packed,
  run,
)

# T below, at, just past and far past the window, and not a multiple of any block.
CASES = [
  (1, 1), (5, 1), (1, 2), (13, 2),
  (5, 7), (7, 7), (8, 7), (9, 7), (61, 7),
  (255, 256), (256, 256), (257, 256), (700, 256),
]  # fmt: skip


def test_no_backend_is_left_out():
  assert {subject.name for subject in SUBJECTS} == set(BACKENDS)


@every_backend()
@pytest.mark.parametrize("T, window", CASES)
def test_windows(backend, T, window):
  check(backend, T, window)


@every_backend()
@pytest.mark.parametrize("T", [1, 2, 33, 300])
def test_global(backend, T):
  check(backend, T, None)


@every_backend()
@pytest.mark.parametrize("window", [1, 5, 16])
def test_packed_segments(backend, window):
  check(backend, 47, window, packed(47, [1, 9, 20, 2, 15]))


@every_backend()
def test_left_padding(backend):
  check(backend, 30, 8, left_padded(30, [0, 11]))


@every_backend(odd_heads=True)
@pytest.mark.parametrize("H, K", [(1, 1), (3, 5), (2, 17)])
def test_odd_heads(backend, H, K):
  check(backend, 21, 6, H=H, K=K)


@every_backend()
def test_unscaled_scores_of_gpt_neo(backend):
  """Nearly one key has all the weight, and dprobs less their mean cancel there: in 16 bits what is
  left is mostly the rounding of the output that the mean is taken from."""
  in_16_bits = backend.dtype == "bfloat16"
  check(backend, 40, 8, scale=1.0, K=64, tolerance=1e-5, given_out=in_16_bits)


@pytest.mark.parametrize("seed", range(4))
def test_unscaled_scores_in_bfloat16(seed):
  check(
    BLOCKED, 40, 8, scale=1.0, K=64, dtype=jnp.bfloat16, tolerance=BFLOAT16_TOLERANCE, seed=seed,
    given_out=True,
  )  # fmt: skip


@every_backend()
def test_bfloat16(backend):
  segments = packed(75, [40, 35])
  check(backend, 75, 16, segments, dtype=jnp.bfloat16, tolerance=BFLOAT16_TOLERANCE)


@every_backend(float16=True)
def test_float16_with_left_padding_has_no_nan(backend):
  """Scores beyond float16's largest number, and rows that see nothing but padding."""
  q, k, v, dout = make_inputs(24, dtype=jnp.float16)
  spec = MaskSpec(8, jnp.asarray(left_padded(24, [10, 23])))
  for x in run(backend, 100 * q, 100 * k, v, dout, spec, 1.0):
    assert x.dtype == jnp.float16
  out, *grads = run(backend, q, k, v, dout, spec, 1.0)
  assert all(np.isfinite(np.asarray(x)).all() for x in (out, *grads))
  assert np.isfinite(np.asarray(run(backend, 100 * q, 100 * k, v, dout, spec, 1.0)[0])).all()


BLOCKED = next(subject for subject in SUBJECTS if subject.name == "blocked")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 8, 16, 64])
def test_block_sizes(block):
  check(BLOCKED, 29, 7, packed(29, [13, 16]), options={"block": block})


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
  check(BLOCKED, T, window, segments_BxT, seed=seed, B=1, H=1, K=3, options={"block": block})


@every_backend()
@pytest.mark.parametrize("mistake", [None, 6, 8])
def test_a_wrong_window_is_noticed(backend, mistake):
  """The suite would fail if a backend forgot its window, or was off by one key."""
  q, k, v, dout = make_inputs(20, dtype=backend.dtype)
  q = q.at[:, 6:8].set(k[:, :1])  # the key in question weighs most, so that 16 bits show it too
  out = run(backend, q, k, v, dout, MaskSpec(mistake), 1.0)[0]
  q, k, v, dout = (np.asarray(x, np.float32) for x in (q, k, v, dout))
  expected = dense_attention(q, k, v, 7, None, 1.0, dout)[0]
  errors_T = np.abs(np.asarray(out, np.float32) - expected).max((0, 2, 3))
  first = 6 if mistake == 6 else 7  # the first query that sees fewer, or more, keys than it should
  assert errors_T[:first].max() < 5 * backend.tolerance < errors_T[first]


# --- dropout ---------------------------------------------------------------------------------


def test_dropout_rate_and_scale():
  dropped = np.asarray(Dropout(0.3, jax.random.key(0))(jnp.ones((400, 400))))
  assert (dropped == 0).mean() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400**2) ** 0.5)
  np.testing.assert_allclose(dropped[dropped > 0], 1 / 0.7, rtol=1e-6)
  assert Dropout(0.3, jax.random.key(0))(jnp.ones(9, jnp.bfloat16)).dtype == jnp.bfloat16


@every_backend(dropout=True)
def test_dropout_of_probabilities(backend):
  """The key decides; the mean over keys is the undropped output."""
  q, k, v, _ = make_inputs(11, K=4)
  spec, scale, count = MaskSpec(5), 0.5, 300

  def dropped(key):
    return BACKENDS[backend.name](q, k, v, spec, scale, Dropout(0.25, key))

  keys = jax.random.split(jax.random.key(1), count)
  keys = jnp.concatenate([keys, keys[:1]])
  samples = np.asarray(jax.jit(jax.vmap(dropped))(keys))
  np.testing.assert_array_equal(samples[0], samples[count])
  assert np.abs(samples[0] - samples[1]).max() > 0.01
  samples = samples[:count]
  expected = np.asarray(BACKENDS[backend.name](q, k, v, spec, scale))
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
  b = block_size(T, window, packed=True)
  assert size <= max(H * b * b, H * T * K)  # the scores of one pair of blocks, or an input
  size, square = largest_intermediate("reference", T, window)  # what the walk would find
  assert square and size >= T * T


@pytest.mark.parametrize("window", [None, 64])
def test_memory_grows_linearly(window):
  lengths = [4096, 8192, 16384]  # where the block has its largest size
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
  plan = blocked.Plan(block_size(2048, window, packed=False), window, 1.0, 0.0)
  assert len(plan.pairs(2048)) == expected


@pytest.mark.parametrize("window", [None, 40])
def test_pairs_without_a_common_segment_are_not_visited(window):
  """What is not a number in one example is not in another's values, nor in their gradients."""
  lengths, b = [16, 32, 16], 16
  segments_BxT = jnp.asarray(packed(64, lengths, B=1))
  spec = MaskSpec(window, segments_BxT)
  q, k, v, dout = make_inputs(64, B=1)
  results = functools.partial(run, BLOCKED, dout=dout, spec=spec, scale=1.0, block=b)
  broken = [x.at[:, 16:48].set(jnp.nan) for x in (q, k, v)]
  for whole, seen in zip(results(q, k, v), results(*broken)):
    for part in (slice(0, 16), slice(48, 64)):
      np.testing.assert_array_equal(whole[:, part], seen[:, part])
    assert jnp.isnan(seen[:, 16:48]).any()
