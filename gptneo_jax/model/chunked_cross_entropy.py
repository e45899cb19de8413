"""Cross-entropy from hidden states, fused with the unembedding, a chunk of tokens at a time.

At 50257 ids the logits of a batch are its largest tensor by far. Here a scan computes, for a chunk
of tokens at a time, the logits, the losses and, since nothing comes after the loss, the gradients
too: each logit is computed once, and neither the forward nor the backward pass holds more than the
logits of a chunk. Tokens of no weight, such as those of a prompt, come last: their chunks are
skipped.

On a mesh each device takes the chunks of its own rows and its own part of the vocabulary; the
gradient of the table is summed over devices once, in the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from gptneo_jax import axes
from gptneo_jax.hardware import current_hardware
from gptneo_jax.model.losses import TokenLosses, mask_padding
from gptneo_jax.sharding import BATCH_SPEC, RULES

CHUNK = 1024  # tokens on a device: 200 MB of float32 logits at 50257 ids
# On a CPU few rows multiply as fast as many, and small chunks waste less where few tokens count.
CPU_CHUNK = 256
# On a GPU the sum of the table's gradients, read and written for each chunk, weighs more; and its
# multipliers are slow where rows are no multiple of 8 long: 50257 columns become 50304.
GPU_CHUNK, GPU_COLUMNS = 2048, 128


class LossSums(NamedTuple):
  """Sums over all tokens, float32 scalars."""

  objective: jax.Array  # nll + z_loss · log(Z)²: gradients flow through this one alone
  nll: jax.Array  # nats


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def loss_sums(
  x_BxTxD: jax.Array,
  table_VxD: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  vocab_size: int,
  z_loss: float,
) -> LossSums:
  """Cross-entropy of the logits x·table^T, and z-loss, each token's times its weight.

  table_VxD: in any type, rounded to that of x; V may be padded beyond `vocab_size`. Logits and
  losses are float32, and so is the gradient of the table while it is summed. Differentiable in x
  and the table, forward and in reverse and any number of times; targets, weights and `nll` are
  constants to it.
  """
  losses = losses_of_tokens(x_BxTxD, table_VxD, targets_BxT, weights_BxT, vocab_size)
  nll = losses.nll_BxT.sum()
  return LossSums(nll + z_loss * losses.z_BxT.sum(), nll)


@functools.partial(loss_sums.defjvp, symbolic_zeros=True)
def _loss_sums_jvp(vocab_size, z_loss, primals, tangents):
  """The tangent is an inner product with the gradients, which are computed together with the loss:
  its transpose, for reverse mode, only multiplies them by the cotangent of the objective. The
  gradient of a table that does not learn is not computed: it is a third of the work, and large."""
  x_BxTxD, table_VxD, targets_BxT, weights_BxT = primals
  learns = not isinstance(tangents[1], SymbolicZero)
  of_table = PartitionSpec(RULES[axes.VOCAB], RULES[axes.EMBED]) if learns else PartitionSpec()
  gradients = _on_mesh(
    functools.partial(
      _loss_and_gradients, vocab_size=vocab_size, z_loss=z_loss, table_learns=learns
    ),
    (PartitionSpec(), BATCH_SPEC, of_table),
  )
  sums, dx_BxTxD, dtable_VxD = gradients(
    x_BxTxD, table_VxD.astype(x_BxTxD.dtype), targets_BxT, weights_BxT
  )
  slope = _inner_product(tangents[0], dx_BxTxD) + _inner_product(tangents[1], dtable_VxD)
  return sums, LossSums(slope, jnp.zeros_like(sums.nll))


def _inner_product(a: jax.Array | SymbolicZero, b: jax.Array | None) -> jax.Array:
  if isinstance(a, SymbolicZero):
    return jnp.float32(0)
  assert b is not None
  return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum()


def losses_of_tokens(
  x_BxTxD: jax.Array,
  table_VxD: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  vocab_size: int,
) -> TokenLosses:
  """`losses.token_losses` of the logits x·table^T, chunk by chunk. Its gradient would keep all
  logits: for that there is `loss_sums`."""
  losses = _on_mesh(functools.partial(_of_tokens, _losses, vocab_size=vocab_size), BATCH_SPEC)
  return losses(x_BxTxD, table_VxD.astype(x_BxTxD.dtype), targets_BxT, weights_BxT)


class TokenPredictions(NamedTuple):
  """Each token's figures, float32 B x T; 0 where its weight is 0."""

  nll_BxT: jax.Array  # nats
  confidence_BxT: jax.Array  # probability of the likeliest token
  correct_BxT: jax.Array  # 1 where no other token was likelier


def predictions_of_tokens(
  x_BxTxD: jax.Array,
  table_VxD: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  vocab_size: int,
) -> TokenPredictions:
  """How the logits x·table^T predict the targets, each times its weight, chunk by chunk."""
  predictions = _on_mesh(
    functools.partial(_of_tokens, _predictions, vocab_size=vocab_size), BATCH_SPEC
  )
  return predictions(x_BxTxD, table_VxD.astype(x_BxTxD.dtype), targets_BxT, weights_BxT)


# --- on one device: its rows, its part of the vocabulary -----------------------------------------


class _Layout(NamedTuple):
  """Mesh axes over which the rows, the vocabulary and the table's hidden dimension are split."""

  batch: Any = ()
  vocab: Any = None
  embed: Any = None


def _on_mesh(function, out_specs):
  """A function of one device's x, table, targets and weights, run on all devices."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return functools.partial(function, layout=_Layout())
  layout = _Layout(RULES[axes.BATCH], RULES[axes.VOCAB], RULES[axes.EMBED])
  table_spec = PartitionSpec(layout.vocab, None)  # its columns gathered once
  return jax.shard_map(
    functools.partial(function, layout=layout),
    in_specs=(BATCH_SPEC, table_spec, BATCH_SPEC, BATCH_SPEC),
    out_specs=out_specs,
    check_vma=False,  # gradients are computed inside: training differentiates nothing through it
  )


class _Terms(NamedTuple):
  """A chunk of N tokens, over this device's part of the vocabulary."""

  exp_NxV: jax.Array  # exp(logits - max)
  sum_N: jax.Array  # of exp, over the vocabulary of all devices
  target_N: jax.Array  # index of the target in this part, outside 0 to V - 1 if in another
  log_z_N: jax.Array
  nll_N: jax.Array
  correct_N: jax.Array  # bool: no other token is likelier than the target


def _with_padded_columns(table_VxD: jax.Array) -> jax.Array:
  """The table with rows that pad the columns of the logits to GPU_COLUMNS."""
  columns = GPU_COLUMNS if _on_gpu() else 1
  return jnp.pad(table_VxD, ((0, -table_VxD.shape[0] % columns), (0, 0)))


def _terms(x_NxD, table_VxD, V: int, targets_N, vocab_size: int, layout: _Layout) -> _Terms:
  """V: vocabulary rows on this device; rows of the table from V on only pad the logits' columns."""
  first_id = jax.lax.axis_index(layout.vocab) * V if layout.vocab else 0
  logits_NxV = jnp.einsum("ND,VD->NV", x_NxD, table_VxD, preferred_element_type=jnp.float32)
  if layout.vocab or table_VxD.shape[0] > min(V, vocab_size):
    logits_NxV = mask_padding(logits_NxV, jnp.minimum(vocab_size - first_id, V))
  # Any shift gives the same log Z: a constant to derivatives, of which `pmax` has none.
  max_N = jax.lax.stop_gradient(logits_NxV.max(-1))
  max_N = jax.lax.pmax(max_N, layout.vocab) if layout.vocab else max_N
  exp_NxV = jnp.exp(logits_NxV - max_N[:, None])
  sum_N = _sum_over(layout.vocab, exp_NxV.sum(-1))
  target_N = targets_N - first_id
  here_N = (target_N >= 0) & (target_N < V)
  of_target_Nx1 = jnp.take_along_axis(logits_NxV, jnp.where(here_N, target_N, 0)[:, None], axis=1)
  of_target_N = _sum_over(layout.vocab, jnp.where(here_N, of_target_Nx1[:, 0], 0.0))
  log_z_N = max_N + jnp.log(sum_N)
  return _Terms(exp_NxV, sum_N, target_N, log_z_N, log_z_N - of_target_N, (of_target_N >= max_N))


def _loss_and_gradients(
  x_BxTxD, table_VxD, targets_BxT, weights_BxT, *, vocab_size, z_loss, table_learns,
  layout: _Layout,
) -> tuple[LossSums, jax.Array, jax.Array | None]:  # fmt: skip
  """The sums over all devices' tokens, and the gradients of `objective`; the table's is float32.

  Without `table_learns` that one is None.
  """
  V, table_VxD = table_VxD.shape[0], _with_padded_columns(table_VxD)

  def visit(carry, chunk):
    sums, dtable_VxD = carry
    x_NxD, targets_N, weights_N = chunk
    terms = _terms(x_NxD, table_VxD, V, targets_N, vocab_size, layout)
    objective_N = terms.nll_N + z_loss * jnp.square(terms.log_z_N)
    # The gradient of log Z are the probabilities.
    slope_N = weights_N * (1.0 + 2.0 * z_loss * terms.log_z_N) / terms.sum_N
    dlogits_NxV = terms.exp_NxV * slope_N[:, None]
    is_target_NxV = jnp.arange(table_VxD.shape[0])[None] == terms.target_N[:, None]
    # Not by `jnp.where`: differentiation takes what is constant, zeros N x V, out of the scan.
    dlogits_NxV -= weights_N[:, None] * is_target_NxV
    dlogits_NxV = dlogits_NxV.astype(x_NxD.dtype)
    dx_NxD = jnp.einsum("NV,VD->ND", dlogits_NxV, table_VxD, preferred_element_type=jnp.float32)
    if table_learns:
      dtable_VxD += jnp.einsum("NV,ND->VD", dlogits_NxV, x_NxD, preferred_element_type=jnp.float32)
    sums = LossSums(
      sums.objective + (objective_N * weights_N).sum(), sums.nll + (terms.nll_N * weights_N).sum()
    )
    return (sums, dtable_VxD), _sum_over(layout.vocab, dx_NxD).astype(x_NxD.dtype)

  dtable_VxD = jnp.zeros(table_VxD.shape, jnp.float32) if table_learns else None
  start = (LossSums(jnp.float32(0), jnp.float32(0)), dtable_VxD)
  (sums, dtable_VxD), dx_BxTxD = _visit_chunks(
    visit, start, (x_BxTxD, targets_BxT, weights_BxT), layout
  )
  sums = LossSums(*(_sum_over(layout.batch, x) for x in sums))
  if dtable_VxD is None:
    return sums, dx_BxTxD, None
  dtable_VxD = dtable_VxD[:V]
  for axis in layout.batch:
    if axis == layout.embed:
      dtable_VxD = jax.lax.psum_scatter(dtable_VxD, axis, scatter_dimension=1, tiled=True)
    else:
      dtable_VxD = jax.lax.psum(dtable_VxD, axis)
  return sums, dx_BxTxD, dtable_VxD


def _of_tokens(
  of_terms: Callable[[_Terms, jax.Array], Any],
  x_BxTxD, table_VxD, targets_BxT, weights_BxT, *, vocab_size, layout: _Layout,
) -> Any:  # fmt: skip
  """`of_terms` of each chunk's terms and weights (N): arrays of N, joined to B x T.

  They have to be 0 where the weight is.
  """
  V, table_VxD = table_VxD.shape[0], _with_padded_columns(table_VxD)

  def visit(_, chunk):
    x_NxD, targets_N, weights_N = chunk
    return None, of_terms(_terms(x_NxD, table_VxD, V, targets_N, vocab_size, layout), weights_N)

  _, of_tokens = _visit_chunks(visit, None, (x_BxTxD, targets_BxT, weights_BxT), layout)
  return of_tokens


def _losses(terms: _Terms, weights_N: jax.Array) -> TokenLosses:
  return TokenLosses(terms.nll_N * weights_N, jnp.square(terms.log_z_N) * weights_N)


def _predictions(terms: _Terms, weights_N: jax.Array) -> TokenPredictions:
  confidence_N = 1.0 / terms.sum_N  # exp(0) is the likeliest token's share of the sum
  made = (terms.nll_N, confidence_N, terms.correct_N)
  return TokenPredictions(*(x_N * weights_N for x_N in made))


def _on_gpu() -> bool:
  return current_hardware().platform == "gpu"


def _chunk_size() -> int:
  return {"gpu": GPU_CHUNK, "cpu": CPU_CHUNK}.get(current_hardware().platform, CHUNK)


def _visit_chunks(
  visit: Callable[[Any, Any], tuple[Any, Any]], start: Any, tokens: tuple[Any, ...], layout: _Layout
) -> tuple[Any, Any]:
  """`jax.lax.scan` of `visit` over chunks of tokens, those with a weight first.

  tokens: x B x T x D, targets and weights B x T. A chunk without any weight is not visited: what
    `visit` would give of its tokens is 0. Returns the last carry, and what was given, as B x T x ….
  """
  weights_BxT = tokens[-1]
  order_N = jnp.argsort(weights_BxT.reshape(-1) == 0, stable=True)
  size = min(_chunk_size(), weights_BxT.size)
  chunks = jax.tree.map(lambda x: _chunks(x, order_N, size), tokens)
  counts_C = (chunks[-1] != 0).any(1)
  if layout.batch:  # all devices visit as many, since they may sum over the vocabulary's parts
    counts_C = jax.lax.pmax(counts_C.astype(jnp.int32), layout.batch) > 0

  def skip(carry, chunk):
    return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given)

  def visit_if_it_counts(carry, counts_and_chunk):
    counts, chunk = counts_and_chunk
    return jax.lax.cond(counts, visit, skip, carry, chunk)

  one = jax.tree.map(lambda x: x[0], chunks)
  given = jax.eval_shape(visit, start, one)[1]
  carry, given_CxN = jax.lax.scan(visit_if_it_counts, start, (counts_C, chunks))
  place_N = jnp.argsort(order_N)

  def joined(x_CxN: jax.Array) -> jax.Array:
    rows = x_CxN.reshape(-1, *x_CxN.shape[2:])
    return rows[place_N].reshape(*weights_BxT.shape, *rows.shape[1:])

  return carry, jax.tree.map(joined, given_CxN)


def _chunks(x_BxT: jax.Array, order_N: jax.Array, size: int) -> jax.Array:
  """B x T x … as chunks C x size x … of tokens in the given order.

  Zeros, which are tokens of no weight, pad the last.
  """
  rows = jnp.take(x_BxT.reshape(-1, *x_BxT.shape[2:]), order_N, axis=0)
  rows = jnp.pad(rows, ((0, -rows.shape[0] % size),) + ((0, 0),) * (rows.ndim - 1))
  return rows.reshape(-1, size, *rows.shape[1:])


def _sum_over(axis: str | tuple[str, ...] | None, x: jax.Array) -> jax.Array:
  return jax.lax.psum(x, axis) if axis else x
