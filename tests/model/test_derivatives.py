"""Derivatives of the model's loss beyond gradients: forward mode, and those of second order.

With `attention_impl="reference"` every kind works. Attention by blocks, which `auto` chooses on a
CPU, has a rule for reverse mode alone, which can itself be differentiated: a Hessian-vector product
as forward mode over reverse mode works with it too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.config import ModelConfig
from gptneo_jax.model.chunked_cross_entropy import loss_sums
from gptneo_jax.model.decoder import Decoder, output_table
from gptneo_jax.model.losses import token_losses

Z_LOSS = 1e-2
T = 150  # beyond the window, and long enough for blocks
NEO = ModelConfig(
  vocab_size=61, hidden_size=16, num_layers=2, num_heads=2, window_size=24, vocab_multiple=8,
  max_position_embeddings=256,
)  # fmt: skip
FORWARD = NEO.replace(attention_impl="reference")
assert NEO.attention_layers == ("global", "local")


def relative_error(got, expected):
  """The largest over all arrays of a tree, each relative to its own largest entry."""
  errors = jax.tree.map(lambda g, e: np.abs(g - e).max() / np.abs(e).max(), got, expected)
  return max(map(float, jax.tree.leaves(errors)))


def inner(a, b):
  return sum(float(np.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  ids_BxT = rng.integers(0, 61, (2, T)).astype(np.int32)
  weights_BxT = rng.choice([0.0, 1.0], (2, T)).astype(np.float32)
  return ids_BxT, np.roll(ids_BxT, -1, 1), weights_BxT / weights_BxT.sum()


@pytest.fixture(scope="module")
def params(batch):
  return nn.unbox(Decoder(NEO).init(jax.random.key(0), batch[0])["params"])


@pytest.fixture(scope="module")
def direction(params):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda p: jnp.asarray(0.02 * rng.standard_normal(p.shape), p.dtype), params)


def moved(params, direction, step):
  return jax.tree.map(lambda p, v: p + step * v, params, direction)


def loss_of(config, batch):
  """The objective of training as a function of the parameters."""
  ids_BxT, targets_BxT, weights_BxT = batch

  def loss(params):
    x_BxTxD = Decoder(config).apply({"params": params}, ids_BxT)
    table_VxD = output_table(config, params)
    return loss_sums(x_BxTxD, table_VxD, targets_BxT, weights_BxT, 61, Z_LOSS).objective

  return loss


def plain_loss_of(batch):
  """The same with all logits at once and no rule of ours: JAX differentiates every operation."""
  ids_BxT, targets_BxT, weights_BxT = batch

  def loss(params):
    logits_BxTxV = Decoder(FORWARD).apply({"params": params}, ids_BxT, method="logits")
    losses = token_losses(logits_BxTxV, targets_BxT, weights_BxT)
    return losses.nll_BxT.sum() + Z_LOSS * losses.z_BxT.sum()

  return loss


def hessian_product(loss):
  return jax.jit(lambda params, v: jax.jvp(jax.grad(loss), (params,), (v,))[1])


@pytest.fixture(scope="module")
def truth(params, direction, batch):
  """Gradient and Hessian-vector product of the plain loss."""
  loss = plain_loss_of(batch)
  return jax.jit(jax.grad(loss))(params), hessian_product(loss)(params, direction)


def test_forward_mode(params, direction, batch, truth):
  loss = loss_of(FORWARD, batch)
  value, slope = jax.jit(lambda p, v: jax.jvp(loss, (p,), (v,)))(params, direction)
  expected = inner(truth[0], direction)
  assert abs(expected) > 1e-3
  np.testing.assert_allclose(value, jax.jit(loss)(params), rtol=1e-6)
  np.testing.assert_allclose(slope, expected, rtol=2e-5)
  value, linear = jax.linearize(loss, params)
  np.testing.assert_allclose(linear(direction), expected, rtol=2e-5)
  np.testing.assert_allclose(
    linear(jax.tree.map(lambda x: -2 * x, direction)), -2 * expected, rtol=2e-5
  )


def test_a_difference_of_losses(params, batch, truth):
  """The gradient itself, along its own direction, against a central difference of values."""
  loss, length, step = jax.jit(loss_of(FORWARD, batch)), inner(truth[0], truth[0]) ** 0.5, 0.004
  ahead, behind = (float(loss(moved(params, truth[0], s / length))) for s in (step, -step))
  np.testing.assert_allclose((ahead - behind) / (2 * step), length, rtol=1e-2)  # float32 losses


@pytest.mark.parametrize("impl", ["reference", "xla", "auto"])
def test_gradient_and_hessian_vector_product(params, direction, batch, truth, impl):
  """Forward mode over reverse mode, which every backend in XLA has."""
  loss = loss_of(NEO.replace(attention_impl=impl), batch)
  assert relative_error(jax.jit(jax.grad(loss))(params), truth[0]) < 2e-5
  assert relative_error(hessian_product(loss)(params, direction), truth[1]) < 1e-4


def test_reverse_mode_over_forward_mode(params, direction, batch, truth):
  loss = loss_of(FORWARD, batch)
  slope = lambda params: jax.jvp(loss, (params,), (direction,))[1]
  assert relative_error(jax.jit(jax.grad(slope))(params), truth[1]) < 1e-4


def test_a_difference_of_gradients(params, direction, batch, truth):
  """The Hessian-vector product against a central difference: the truth is tested too."""
  gradient, step = jax.jit(jax.grad(plain_loss_of(batch))), 0.004
  ahead, behind = (gradient(moved(params, direction, s)) for s in (step, -step))
  difference = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
  assert relative_error(difference, truth[1]) < 1e-2


def test_blocks_have_no_forward_mode(params, direction, batch):
  """What docs/python.md says: the error names the rule, and the reference is the way out."""
  with pytest.raises(TypeError, match="custom_vjp"):
    jax.jvp(loss_of(NEO, batch), (params,), (direction,))
