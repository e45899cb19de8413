"""A label for each word of a sentence; see examples/token_classification.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_losses, packed_outputs
from gptneo_jax.training.example_task import HeadTask


class TokenClassification(HeadTask):
  """The loss is the mean over the words."""

  NAME = "token_classification"
  HEADS = ("token_classification",)

  def head_loss(self, config, module, params, batch, hidden_BxTxD, key, total) -> jax.Array:
    outputs_BxTxC = packed_outputs.read(module, params, hidden_BxTxD, None, key)
    smoothing = config.label_smoothing
    return packed_losses.token_labels(outputs_BxTxC, batch, total, smoothing=smoothing)


TASK = TokenClassification()
