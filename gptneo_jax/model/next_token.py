"""Next-token prediction of a batch: its loss, and how each token is predicted.

A batch has `inputs` and `targets`, int32 B x T, and may have `segment_ids`, `positions` (int32) and
`weights` (float32; 1 without) of the same shape.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gptneo_jax.config import ModelConfig
from gptneo_jax.model.chunked_cross_entropy import (
  LossSums,
  TokenPredictions,
  loss_sums,
  predictions_of_tokens,
)
from gptneo_jax.model.decoder import Decoder, output_table

Batch = Mapping[str, jax.Array]


def weight_sum(batch: Batch) -> jax.Array:
  """Sum of the weights of all tokens, a float32 scalar."""
  return _weights(batch).sum()


def loss(
  module: Decoder,
  params: Any,
  batch: Batch,
  dropout_key: jax.Array | None,
  *,
  weight_sum: jax.Array,
  z_loss: float,
  label_smoothing: float = 0.0,
) -> LossSums:
  """Cross-entropy + z_loss · log(Z)², each token's times its weight / `weight_sum`, summed.

  With the `weight_sum` of a larger batch it is this batch's share of the larger one's mean.
  label_smoothing: ε of (1 - ε) · cross-entropy + ε · the mean over the vocabulary of -log p, in the
    objective alone. dropout_key: None for none.
  """
  hidden_BxTxD = hidden_states(module, params, batch, dropout_key)
  return loss_of_hidden(
    module,
    params,
    hidden_BxTxD,
    batch,
    weight_sum=weight_sum,
    z_loss=z_loss,
    label_smoothing=label_smoothing,
  )


def loss_of_hidden(
  module: Decoder,
  params: Any,
  hidden_BxTxD: jax.Array,
  batch: Batch,
  *,
  weight_sum: jax.Array,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> LossSums:
  """`loss` of final hidden states."""
  tokens = (
    hidden_BxTxD,
    output_table(module.config, params),
    batch["targets"],
    _weights(batch) / weight_sum,
    module.config.vocab_size,
  )
  sums = loss_sums(*tokens, z_loss)
  if not label_smoothing:
    return sums
  return LossSums(sums.objective + label_smoothing * above_mean_sum(*tokens), sums.nll)


def above_mean_sum(
  x_BxTxD: jax.Array,
  table_VxD: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  vocab_size: int,
) -> jax.Array:
  """By how much the target's logit x·table^T is above the mean of all, times the weight, summed.

  That is cross-entropy taken from the mean over the vocabulary of -log p, since log Z is in both:
  with label smoothing ε, ε times this is added to the loss, and no logits are needed for it.
  """
  target_BxTxD = jnp.take(table_VxD, targets_BxT, axis=0).astype(x_BxTxD.dtype)
  mean_D = table_VxD[:vocab_size].astype(x_BxTxD.dtype).mean(0, dtype=jnp.float32)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  above_BxT = dot("BTD,BTD->BT", x_BxTxD, target_BxTxD) - dot("BTD,D->BT", x_BxTxD, mean_D)
  return (above_BxT * weights_BxT).sum()


def predictions(module: Decoder, params: Any, batch: Batch) -> TokenPredictions:
  """How each token of a batch is predicted, without dropout."""
  hidden_BxTxD = hidden_states(module, params, batch, None)
  config: ModelConfig = module.config
  return predictions_of_tokens(
    hidden_BxTxD,
    output_table(config, params),
    batch["targets"],
    _weights(batch),
    config.vocab_size,
  )


def hidden_states(
  module: Decoder, params: Any, batch: Batch, dropout_key: jax.Array | None
) -> jax.Array:
  """Final hidden states of a batch, B x T x D; without dropout where the key is None."""
  drops = module.config.draws_in_training and dropout_key is not None
  return module.apply(
    {"params": params},
    batch["inputs"],
    positions_BxT=batch.get("positions"),
    segment_ids_BxT=batch.get("segment_ids"),
    deterministic=not drops,
    rngs={"dropout": dropout_key} if drops else None,
  )


def _weights(batch: Batch) -> jax.Array:
  return batch.get("weights", jnp.ones(batch["targets"].shape, jnp.float32))
