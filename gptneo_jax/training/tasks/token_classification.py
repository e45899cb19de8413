"""A label for each word of a sentence; see examples/token_classification.py."""

from __future__ import annotations

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from gptneo_jax.model import packed_losses, packed_outputs, pooled_losses
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Batch, Loss
from gptneo_jax.training.example_task import ExampleTask


class TokenClassification(ExampleTask):
  """The loss is the mean over the words."""

  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    smoothed = functools.partial(head_loss, smoothing=config.label_smoothing)
    task = ExampleTask(self.name, self.HEADS, smoothed, pooled_losses.weight_sum)
    return task.make_loss(config, module)


def head_loss(
  module: Any,
  params: Any,
  batch: Batch,
  hidden_BxTxD: jax.Array,
  key: jax.Array | None,
  total: jax.Array,
  *,
  smoothing: float = 0.0,
) -> jax.Array:
  outputs_BxTxC = packed_outputs.read(module, params, hidden_BxTxD, None, key)
  return packed_losses.token_labels(outputs_BxTxC, batch, total, smoothing=smoothing)


TASK = TokenClassification(
  "token_classification", ("token_classification",), head_loss, pooled_losses.weight_sum
)
