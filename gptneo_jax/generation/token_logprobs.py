"""Log-probabilities of tokens, and of the likeliest ones in their place."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

ALTERNATIVES = 20  # the most that OpenAI's API gives


class TokenLogprobs(NamedTuple):
  """Of N tokens, under the model's own distribution: before processors and temperature.

  logprob_N; and the K likeliest ids in place of each, the likeliest first: id_NxK, top_NxK.
  """

  logprob_N: jax.Array
  id_NxK: jax.Array
  top_NxK: jax.Array


def token_logprobs(logits_NxV: jax.Array, token_N: jax.Array) -> TokenLogprobs:
  """A token that is the likeliest has the very float of the first alternative."""
  log_NxV = jax.nn.log_softmax(logits_NxV)
  top_NxK, id_NxK = jax.lax.top_k(log_NxV, min(ALTERNATIVES, log_NxV.shape[1]))
  logprob_N = jnp.take_along_axis(log_NxV, token_N[:, None], axis=1)[:, 0]
  return TokenLogprobs(logprob_N, id_NxK, top_NxK)
