"""Language modelling: text packed into rows of seq_len tokens, of which each predicts the next.

Pre-training, and continued pre-training on other text. The loss is the mean over all tokens of
cross-entropy + config.z_loss · log(Z)².
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.model import next_token
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Loss
from gptneo_jax.training.epochs import settle_steps
from gptneo_jax.training.setup import Run
from gptneo_jax.training.validation import Validation

HEADS = ("lm",)
POSITIONS_RESTART = False
PRETRAINS = True

check_sources = data.check_sources


def prepare(run: Run, tokenizer: Any) -> tuple[ConfigDict, None]:
  """The steps of epochs, if the config counts in these; else text is read as it is needed.

  Raises DataError for epochs of a mixture.
  """
  config = run.asked
  if not (config.epochs or config.every_epoch):
    return config, None
  if len(run.data_config.entries) > 1:
    raise data.DataError(
      "epochs count passes over one source, and those of a mixture end at different times: set"
      " steps, and epochs=0 and every_epoch=False"
    )
  tokens = data.tokens_of_epoch(run.data_config, tokenizer)
  return settle_steps(config, tokens / (config.batch_size * (config.seq_len + 1))), None


def describe_data(run: Run, tokenizer: Any) -> str:
  """Documents, bytes, and about how many tokens and steps an epoch has."""
  tokens = run.config.batch_size * (run.config.seq_len + 1)
  return data.amount_of_data(run.data_config, tokenizer, tokens)


def write_files(run: Run, tokenizer: Any, workdir: epath.Path) -> None:
  """There is nothing else."""


def open_batches(run: Run, tokenizer: Any) -> data.TrainBatches:
  return data.TrainBatches(
    run.data_config,
    tokenizer,
    batch_size=run.config.batch_size,
    seq_len=run.config.seq_len,
    seed=run.config.seed,
    streams=run.own_streams,
  )


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
  config = run.config
  kinds = {"inputs": jnp.int32, "targets": jnp.int32}
  if config.data.segment_ids:
    kinds |= {"segment_ids": jnp.int32, "weights": jnp.float32}
  shape = (config.batch_size, config.seq_len)
  return {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()}


def make_loss(config: ConfigDict, module: Decoder) -> Loss:
  return next_token_loss(module, config.z_loss, config.label_smoothing)


def next_token_loss(module: Decoder, z_loss: float, label_smoothing: float = 0.0) -> Loss:
  """Metrics: `loss`, the mean cross-entropy in nats, without the z term and label smoothing."""

  def share(params: Any, part: dict[str, jax.Array], key: jax.Array | None, weight_sum: jax.Array):
    sums = next_token.loss(
      module, params, part, key,
      weight_sum=weight_sum, z_loss=z_loss, label_smoothing=label_smoothing,
    )  # fmt: skip
    return sums.objective, {"loss": sums.nll}

  return Loss(next_token.weight_sum, share)


def train_metrics(metrics: dict[str, float]) -> dict[str, float]:
  return {**metrics, "perplexity": math.exp(min(metrics["loss"], 700.0))}


make_evaluation = Validation
