"""The two compiled functions of a run: one update, and the losses of an evaluation batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptneo_jax.model.chunked_cross_entropy import (
  TokenPredictions,
  loss_sums,
  predictions_of_tokens,
)
from gptneo_jax.model.decoder import Decoder, output_table
from gptneo_jax.sharding import BATCH_SPEC
from gptneo_jax.state import TrainState

Batch = dict[str, jax.Array]


def place_batch(batch: dict[str, Any], mesh: Mesh, global_rows: int) -> Batch:
  """This host's rows (NumPy, b x T) as global arrays (B x T) split over data and fsdp.

  Row i of them goes to the i-th of the rows that this host's devices hold, in ascending order.
  """
  sharding = NamedSharding(mesh, BATCH_SPEC)
  return {
    key: jax.make_array_from_process_local_data(sharding, rows, (global_rows, *rows.shape[1:]))
    for key, rows in batch.items()
  }


def make_train_step(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  mesh: Mesh,
  *,
  z_loss: float,
  accumulation: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """One update of the parameters, compiled; the state passed in is donated.

  The batch has `inputs` and `targets`, int32 B x T, and may have `segment_ids` (int32) and
  `weights` (float32) of the same shape. The objective is the weighted mean over all tokens of
  cross-entropy + z_loss · log(Z)². With accumulation A the batch is taken in A parts whose gradient
  sums are added in float32: the same mean, A times less memory for activations.
  Metrics, float32 scalars: `loss` (mean cross-entropy in nats, without the z term) and `grad_norm`
  (before clipping). Raises ValueError for float16, in which small gradients would be 0.
  """
  config = model.config
  if "float16" in (config.dtype, config.param_dtype):
    raise ValueError("float16 is for inference; train in bfloat16 or float32")
  dropout = any((config.embed_dropout, config.attention_dropout, config.resid_dropout))

  def objective(params, batch: Batch, key: jax.Array, total_weight: jax.Array):
    hidden_BxTxD = _hidden(
      model, params, batch, deterministic=not dropout, rngs={"dropout": key} if dropout else None
    )
    weights_BxT = _weights(batch) / total_weight
    sums = loss_sums(
      hidden_BxTxD, output_table(config, params), batch["targets"], weights_BxT,
      config.vocab_size, z_loss,
    )  # fmt: skip
    return sums.objective, sums.nll

  def train_step(state: TrainState, batch: Batch):
    total_weight = _weights(batch).sum()
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    gradient = jax.grad(objective, has_aux=True)

    if accumulation == 1:
      grads, loss = gradient(state.params, batch, key, total_weight)
    else:

      def add(carry, part_and_number):
        part, number = part_and_number
        grads, loss = gradient(state.params, part, jax.random.fold_in(key, number), total_weight)
        return jax.tree.map(jnp.add, carry, (grads, loss)), None

      zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
      parts = (jax.tree.map(_split(accumulation), batch), jnp.arange(accumulation))
      (grads, loss), _ = jax.lax.scan(add, (zeros, jnp.float32(0.0)), parts)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return state, {"loss": loss, "grad_norm": optax.global_norm(grads)}

  return jax.jit(
    train_step,
    in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    donate_argnums=0,
  )


def make_eval_step(
  model: Decoder, param_shardings: Any, mesh: Mesh
) -> Callable[[Any, Batch], TokenPredictions]:
  """How each token of a batch as in `make_train_step` is predicted, on every device, compiled."""

  def eval_step(params, batch: Batch) -> TokenPredictions:
    hidden_BxTxD = _hidden(model, params, batch, deterministic=True)
    table_VxD = output_table(model.config, params)
    return predictions_of_tokens(
      hidden_BxTxD, table_VxD, batch["targets"], _weights(batch), model.config.vocab_size
    )

  return jax.jit(
    eval_step,
    in_shardings=(param_shardings, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )


def _hidden(model: Decoder, params: Any, batch: Batch, **options) -> jax.Array:
  return model.apply(
    {"params": params}, batch["inputs"], segment_ids_BxT=batch.get("segment_ids"), **options
  )


def _weights(batch: Batch) -> jax.Array:
  return batch.get("weights", jnp.ones(batch["targets"].shape, jnp.float32))


def _split(parts: int) -> Callable[[jax.Array], jax.Array]:
  """B x … to parts x B/parts x …; part p takes rows p, p + parts, …: devices keep their own."""
  return lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
