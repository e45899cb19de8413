"""Answers as spans of a context; see examples/question_answering.py."""

from __future__ import annotations

from typing import Any

import jax

from gptneo_jax.model import packed_losses, packed_outputs, pooled_losses
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
  """The mean over the windows of the contexts."""
  outputs_BxTx2 = packed_outputs.read(module, params, hidden_BxTxD, None, key)
  return packed_losses.spans(outputs_BxTx2, batch, total)


TASK = ExampleTask(
  "question_answering", ("question_answering",), head_loss, pooled_losses.weight_sum
)
