"""Questions and their choices; see examples/multiple_choice.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_outputs, pooled_losses
from gptneo_jax.training.example_task import HeadTask


class MultipleChoice(HeadTask):
  """The loss is the mean over the questions of -log of the right choice's share of the softmax."""

  NAME = "multiple_choice"
  HEADS = ("sequence_classification", "double_heads")

  def head_loss(self, config, module, params, batch, hidden_BxTxD, key, total) -> jax.Array:
    scores_BxExC = packed_outputs.read(module, params, hidden_BxTxD, batch["pooled"], key)
    losses_BxE = pooled_losses.choice_losses(scores_BxExC[..., 0], batch["groups"])
    return pooled_losses.weighted_sum(losses_BxE, batch["weights"], total)


TASK = MultipleChoice()
