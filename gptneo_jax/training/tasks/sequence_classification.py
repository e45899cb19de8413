"""Texts and their labels; see examples/sequence_classification.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_outputs, pooled_losses
from gptneo_jax.training.example_task import HeadTask


class SequenceClassification(HeadTask):
  """The loss is the mean over the sequences, by the problem that model.problem_type names."""

  NAME = "sequence_classification"
  HEADS = ("sequence_classification",)

  def head_loss(self, config, module, params, batch, hidden_BxTxD, key, total) -> jax.Array:
    outputs_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
    losses_BxE = pooled_losses.label_losses(
      outputs_BxExC, batch["labels"], module.config.problem_type
    )
    return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = SequenceClassification()
