"""Label smoothing without logits, against transformers' and one that holds all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.config import ModelConfig
from gptneo_jax.model import heads, next_token
from gptneo_jax.model.decoder import output_table
from gptneo_jax.model.parameters import abstract_params

EPSILON = 0.1
CONFIG = ModelConfig(
  vocab_size=29, hidden_size=16, num_layers=1, num_heads=2, attention_pattern=("global",),
  max_position_embeddings=16, vocab_multiple=8,
)  # fmt: skip
MODULE = heads.build(CONFIG)


@pytest.fixture(scope="module")
def params():
  chance = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(chance.normal(0, 0.5, x.shape), x.dtype), abstract_params(MODULE)
  )


@pytest.fixture(scope="module")
def batch():
  chance = np.random.default_rng(1)
  ids_BxT = chance.integers(0, 29, (3, 8)).astype(np.int32)
  weights_BxT = chance.choice([0.0, 1.0], (3, 8)).astype(np.float32)
  return {"inputs": ids_BxT[:, :-1], "targets": ids_BxT[:, 1:], "weights": weights_BxT[:, 1:]}


def logits_of(params, batch):
  hidden_BxTxD = MODULE.apply({"params": params}, batch["inputs"])
  return jnp.einsum("BTD,VD->BTV", hidden_BxTxD, output_table(CONFIG, params)[:29])


@jax.jit
def smoothed(params, batch):
  return next_token.loss(
    MODULE, params, batch, jax.random.key(0),
    weight_sum=next_token.weight_sum(batch), z_loss=0.0, label_smoothing=EPSILON,
  )  # fmt: skip


def at_once(params, batch):
  log_p_BxTxV = jax.nn.log_softmax(logits_of(params, batch))
  targets_BxTxV = jax.nn.one_hot(batch["targets"], 29) * (1 - EPSILON) + EPSILON / 29
  loss_BxT = -(targets_BxTxV * log_p_BxTxV).sum(-1)
  return (loss_BxT * batch["weights"]).sum() / batch["weights"].sum()


def test_smoothed_labels_and_gradients(params, batch):
  loss, gradient = jax.jit(jax.value_and_grad(lambda p: smoothed(p, batch).objective))(params)
  expected, expected_gradient = jax.jit(jax.value_and_grad(at_once))(params, batch)
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, expected_gradient
  )
  plain = next_token.loss(
    MODULE, params, batch, jax.random.key(0), weight_sum=batch["weights"].sum(), z_loss=0.0
  )
  assert smoothed(params, batch).nll == pytest.approx(float(plain.objective), rel=1e-6)


@pytest.mark.parity
def test_the_smoother_of_transformers(params, batch):
  torch = pytest.importorskip("torch")
  from transformers.trainer_pt_utils import LabelSmoother

  labels = np.where(batch["weights"] > 0, batch["targets"], -100)
  logits = torch.tensor(np.asarray(logits_of(params, batch)))
  expected = LabelSmoother(EPSILON)({"logits": logits}, torch.tensor(labels, dtype=torch.int64))
  assert float(smoothed(params, batch).objective) == pytest.approx(float(expected), rel=1e-5)
