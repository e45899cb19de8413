"""Questions and their choices; see examples/multiple_choice.py."""

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
  """The mean over the questions of -log of the right choice's share of the softmax."""
  scores_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
  losses_BxE = pooled_losses.choice_losses(scores_BxExC[..., 0], batch["groups"])
  return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = ExampleTask(
  "multiple_choice", ("sequence_classification", "double_heads"), head_loss,
  pooled_losses.weight_sum,
)  # fmt: skip
