"""Next-token prediction of a batch: its loss, and how each token is predicted.

A batch has `inputs` and `targets`, int32 B x T, and may have `segment_ids` (int32) and `weights`
(float32; 1 without) of the same shape.
"""

from __future__ import annotations

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
  dropout_key: jax.Array,
  *,
  weight_sum: jax.Array,
  z_loss: float,
) -> LossSums:
  """Cross-entropy + z_loss · log(Z)², each token's times its weight / `weight_sum`, summed.

  With the `weight_sum` of a larger batch it is this batch's share of the larger one's mean.
  """
  config = module.config
  drops = any((config.embed_dropout, config.attention_dropout, config.resid_dropout))
  hidden_BxTxD = _hidden(
    module, params, batch, deterministic=not drops, rngs={"dropout": dropout_key} if drops else None
  )
  return loss_sums(
    hidden_BxTxD,
    output_table(config, params),
    batch["targets"],
    _weights(batch) / weight_sum,
    config.vocab_size,
    z_loss,
  )


def predictions(module: Decoder, params: Any, batch: Batch) -> TokenPredictions:
  """How each token of a batch is predicted, without dropout."""
  hidden_BxTxD = _hidden(module, params, batch, deterministic=True)
  config: ModelConfig = module.config
  return predictions_of_tokens(
    hidden_BxTxD,
    output_table(config, params),
    batch["targets"],
    _weights(batch),
    config.vocab_size,
  )


def _hidden(module: Decoder, params: Any, batch: Batch, **options) -> jax.Array:
  return module.apply(
    {"params": params}, batch["inputs"], segment_ids_BxT=batch.get("segment_ids"), **options
  )


def _weights(batch: Batch) -> jax.Array:
  return batch.get("weights", jnp.ones(batch["targets"].shape, jnp.float32))
