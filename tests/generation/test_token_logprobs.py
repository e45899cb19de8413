"""Log-probabilities of tokens, and the likeliest alternatives."""

import jax.numpy as jnp
import numpy as np

from gptneo_jax.generation.token_logprobs import ALTERNATIVES, token_logprobs


def test_token_logprobs():
  logits_NxV = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
  logits_NxV[2, 7] = -np.inf
  log_NxV = logits_NxV - np.log(np.exp(logits_NxV).sum(-1, keepdims=True))
  best = int(log_NxV[1].argmax())
  got = token_logprobs(jnp.asarray(logits_NxV), jnp.array([4, best, 7]))
  np.testing.assert_allclose(got.logprob_N, log_NxV[[0, 1, 2], [4, best, 7]], rtol=1e-5)
  assert got.logprob_N[1] == got.top_NxK[1, 0] and got.id_NxK[1, 0] == best
  np.testing.assert_array_equal(got.id_NxK, np.argsort(-log_NxV)[:, :ALTERNATIVES])


def test_fewer_ids_than_alternatives():
  got = token_logprobs(jnp.zeros((1, 3)), jnp.array([1]))
  assert got.id_NxK.tolist() == [[0, 1, 2]] and got.logprob_N[0] == got.top_NxK[0, 2]
