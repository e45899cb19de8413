"""Autoregressive decoding as one compiled loop on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import sampling
from gptneo_jax.errors import UserError
from gptneo_jax.model import Decoder
from gptneo_jax.sharding import constrain

_BUCKET = 64  # lengths are rounded up to a multiple, so that new prompt lengths rarely recompile


def generate_ids(
  model: Decoder,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  end_id: int,
  temperature: float = 0.0,
  top_k: int = 50,
  seed: int = 0,
) -> list[list[int]]:
  """Continues every prompt (ids); returns the new ids of each, up to and without the end id.

  temperature 0 is greedy. Raises UserError for an empty prompt and for prompt plus new tokens
  beyond the model's positions.
  """
  lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
  limit = model.config.max_position_embeddings
  if lengths_B.min() == 0:
    raise UserError("the prompt is empty; begin with at least one token")
  longest = int(lengths_B.max()) + max_new_tokens
  if longest > limit:
    raise UserError(
      f"a prompt of {lengths_B.max()} tokens and {max_new_tokens} new ones make {longest},"
      f" {longest - limit} more than the model's {limit} positions"
    )
  width = min(math.ceil(longest / _BUCKET) * _BUCKET, limit)
  ids_BxT = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(ids_BxT, prompts):
    row[: len(prompt)] = prompt
  ids_BxT = np.asarray(
    _decode(
      model, params, ids_BxT, lengths_B, jax.random.key(seed), max_new_tokens, end_id,
      temperature=temperature, top_k=top_k,
    )
  )  # fmt: skip
  rows = [row[n : n + max_new_tokens].tolist() for row, n in zip(ids_BxT, lengths_B)]
  return [row[: row.index(end_id)] if end_id in row else row for row in rows]


@functools.partial(jax.jit, static_argnames=("model", "temperature", "top_k"))
def _decode(
  model: Decoder,
  params: Any,
  ids_BxT: jax.Array,
  lengths_B: jax.Array,
  key: jax.Array,
  max_new_tokens: jax.Array,
  end_id: jax.Array,
  *,
  temperature: float,
  top_k: int,
) -> jax.Array:
  """Writes the new ids behind each prompt of right-padded ids_BxT, int32.

  Attention is causal, so what stands to the right of a position never matters: prompts of several
  lengths need neither mask nor shift. Every token costs a forward pass over the buffer; there is no
  cache.
  """
  rows_B = jnp.arange(ids_BxT.shape[0])

  def step(carry):
    n, ids_BxT, done_B = carry
    hidden_BxTxD = model.apply({"params": params}, ids_BxT)
    last_Bx1xD = hidden_BxTxD[rows_B, lengths_B + n - 1][:, None]
    logits_BxV = model.apply({"params": params}, last_Bx1xD, method="unembed")[:, 0]
    token_B = sampling.sample_token(
      jax.random.fold_in(key, n), logits_BxV, temperature=temperature, top_k=top_k
    )
    token_B = jnp.where(done_B, end_id, token_B)
    return n + 1, ids_BxT.at[rows_B, lengths_B + n].set(token_B), done_B | (token_B == end_id)

  def unfinished(carry):
    n, _, done_B = carry
    return (n < max_new_tokens) & ~done_B.all()

  start = (jnp.int32(0), jnp.asarray(ids_BxT), jnp.zeros(ids_BxT.shape[0], bool))
  # Whole on every device, so that each host can read it.
  return constrain(jax.lax.while_loop(unfinished, step, start)[1], None, None)
