"""Answers as spans of a context; see examples/question_answering.py."""

from __future__ import annotations

import jax

from gptneo_jax.model import packed_losses, packed_outputs
from gptneo_jax.training.example_task import HeadTask


class QuestionAnswering(HeadTask):
  """The loss is the mean over the windows of the contexts."""

  NAME = "question_answering"
  HEADS = ("question_answering",)

  def head_loss(self, config, module, params, batch, hidden_BxTxD, key, total) -> jax.Array:
    outputs_BxTx2 = packed_outputs.read(module, params, hidden_BxTxD, None, key)
    return packed_losses.spans(outputs_BxTx2, batch, total)


TASK = QuestionAnswering()
