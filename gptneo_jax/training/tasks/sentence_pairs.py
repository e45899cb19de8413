"""Pairs of texts and their labels; see examples/sentence_pairs.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_outputs, pooled_losses
from gptneo_jax.training.example_task import HeadTask


class SentencePairs(HeadTask):
  """The loss is the mean over the pairs; what the head says of their orders is added before."""

  NAME = "sentence_pairs"
  HEADS = ("sequence_classification",)

  def head_loss(self, config, module, params, batch, hidden_BxTxD, key, total) -> jax.Array:
    outputs_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
    outputs_BxExC = pooled_losses.added_by_group(outputs_BxExC, batch["groups"])
    losses_BxE = pooled_losses.label_losses(
      outputs_BxExC, batch["labels"], module.config.problem_type
    )
    return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = SentencePairs()
