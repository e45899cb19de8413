"""The compiled functions of a run: one update of the parameters, and one evaluation batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptneo_jax.model import lora
from gptneo_jax.sharding import BATCH_SPEC
from gptneo_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Loss(NamedTuple):
  """What a step minimises: a weighted mean over a batch, in however many parts it is computed.

  Rows, tokens or labels carry the weights, so that a part with few of them counts little.

  weight_sums: batch -> the sums of the weights over the whole batch, float32: what the mean is
    divided by. A scalar, or a tree where several means are added. Depends on no parameter.
  share: (params, part, key, weight_sums) -> (objective, metrics): the part's weighted sums, divided
    by the `weight_sums` of the whole batch. The objective is differentiated. Metrics are float32
    scalars, `loss` among them. Over all parts each adds up to the mean of the batch. key: for
    dropout; None for none.
  """

  weight_sums: Callable[[Batch], Any]
  share: Callable[[Any, Batch, jax.Array | None, Any], tuple[jax.Array, Metrics]]


class Guard(NamedTuple):
  """What decides in a step whether it changes anything.

  init: the history before the first step, a tree of arrays; may be {}.
  check: (history, loss, norm of the gradients) -> (whether the step is skipped, history after it).
  """

  init: Callable[[], Any]
  check: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def place_batch(batch: dict[str, Any], mesh: Mesh, global_rows: int) -> Batch:
  """This host's rows (NumPy, b x …) as global arrays (B x …) split over data and fsdp.

  Row i of them goes to the i-th of the rows that this host's devices hold, in ascending order.
  """
  sharding = NamedSharding(mesh, BATCH_SPEC)
  return {
    key: jax.make_array_from_process_local_data(sharding, rows, (global_rows, *rows.shape[1:]))
    for key, rows in batch.items()
  }


def make_train_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  mesh: Mesh,
  *,
  accumulation: int = 1,
  guard: Guard | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """One update of what learns, compiled; the state passed in is donated.

  What does not learn, `state.frozen`, stays where it is: it has no gradient, and nothing of the
  forward pass is kept for one.

  With accumulation A the batch is taken in A parts, whose gradients are added in float32: the same
  mean, A times less memory for activations. Metrics: those of the loss, and `grad_norm` (before
  clipping). With a guard also `skipped`, 1 or 0: a step that is skipped leaves what learns and the
  optimizer's state as they were, bit for bit, and is counted like any other.
  """

  def train_step(state: TrainState, batch: Batch):
    weight_sums = loss.weight_sums(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def share(params: Any, *rest: Any) -> tuple[jax.Array, Metrics]:
      return loss.share(lora.combine(state.frozen, params), *rest)

    gradient = jax.grad(share, has_aux=True)

    if accumulation == 1:
      grads, metrics = gradient(state.params, batch, key, weight_sums)
    else:

      def add(carry, part_and_number):
        part, number = part_and_number
        new = gradient(state.params, part, jax.random.fold_in(key, number), weight_sums)
        return jax.tree.map(jnp.add, carry, new), None

      parts = jax.tree.map(_split(accumulation), batch)
      one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
      _, metrics = jax.eval_shape(share, state.params, one, key, weight_sums)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (state.params, metrics))
      (grads, metrics), _ = jax.lax.scan(add, zeros, (parts, jnp.arange(accumulation)))

    metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    changed, history = (optax.apply_updates(state.params, updates), opt_state), state.history
    if guard is not None:
      skipped, history = guard.check(history, metrics["loss"], metrics["grad_norm"])
      before = state.params, state.opt_state
      changed = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), before, changed)
      metrics["skipped"] = skipped.astype(jnp.float32)
    params, opt_state = changed
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, history=history)
    return state, metrics

  return jax.jit(
    train_step,
    in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    donate_argnums=0,
  )


def make_eval_step(
  function: Callable[[Any, Batch], Any], param_shardings: Any, mesh: Mesh
) -> Callable[[Any, Batch], Any]:
  """`function` of parameters and a batch, compiled; every device has all of its result."""
  return jax.jit(
    function,
    in_shardings=(param_shardings, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )


def _split(parts: int) -> Callable[[jax.Array], jax.Array]:
  """B x … to parts x B/parts x …; part p takes rows p, p + parts, …: devices keep their own."""
  return lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
