"""Texts and their labels; see examples/sequence_classification.py."""

from __future__ import annotations

from typing import Any

import jax

from gptneo_jax.model import packed_outputs, pooled_losses
from gptneo_jax.steps import Batch
from gptneo_jax.training.example_task import ExampleTask


def head_loss(
  module: Any,
  params: Any,
  batch: Batch,
  hidden_BxTxD: jax.Array,
  key: jax.Array | None,
  total: jax.Array,
) -> jax.Array:
  """The mean over the sequences, by the problem that model.problem_type names."""
  outputs_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
  losses_BxE = pooled_losses.label_losses(
    outputs_BxExC, batch["labels"], module.config.problem_type
  )
  return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = ExampleTask(
  "sequence_classification", ("sequence_classification",), head_loss, pooled_losses.weight_sum
)
