"""Pairs of texts and their labels; see examples/sentence_pairs.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_outputs, pooled_losses
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Batch
from gptneo_jax.training.example_task import ExampleTask


def head_loss(
  module: Decoder, params, batch: Batch, hidden_BxTxD: jax.Array, key: jax.Array | None,
  total: jax.Array,
) -> jax.Array:  # fmt: skip
  """The mean over the pairs, of the sum of what the head says of their orders."""
  outputs_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
  outputs_BxExC = pooled_losses.added_by_group(outputs_BxExC, batch["groups"])
  losses_BxE = pooled_losses.label_losses(
    outputs_BxExC, batch["labels"], module.config.problem_type
  )
  return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = ExampleTask(
  "sentence_pairs", ("sequence_classification",), head_loss, pooled_losses.weight_sum
)
