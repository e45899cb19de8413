"""Losses of heads that read one token of each sequence, on packed rows.

A batch has `inputs`, `segment_ids`, `positions` (int32 B x T), `pooled` (int32 B x E, the token of
each sequence that is read), `weights` (float32 B x E; 0 for places without a sequence) and

  `labels`, float32 B x E x C: of classes the distribution to predict, of several labels 0 or 1 for
    each, of a regression the value;
  `groups`, int32 B x E: equal for the sequences of one example, where it has several.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptneo_jax.attention.mask import MASKED


def label_losses(outputs_BxExC: jax.Array, labels_BxExC: jax.Array, problem: str) -> jax.Array:
  """The loss of each sequence, B x E: cross-entropy; binary, the mean of the labels'; square."""
  if problem == "regression":
    return jnp.square(outputs_BxExC - labels_BxExC).mean(-1)
  if problem == "multi_label_classification":
    return (jax.nn.softplus(outputs_BxExC) - labels_BxExC * outputs_BxExC).mean(-1)
  return -(labels_BxExC * jax.nn.log_softmax(outputs_BxExC)).sum(-1)


def added_by_group(outputs_BxExC: jax.Array, groups_BxE: jax.Array) -> jax.Array:
  """Of each sequence the sum of what the head says of all in its group."""
  return jnp.einsum("BEF,BFC->BEC", _same(groups_BxE).astype(jnp.float32), outputs_BxExC)


def choice_losses(scores_BxE: jax.Array, groups_BxE: jax.Array) -> jax.Array:
  """-log of the softmax over its group, at each sequence: the loss if it were the right choice."""
  scores_BxExE = jnp.where(_same(groups_BxE), scores_BxE[:, None, :], MASKED)
  return jax.nn.logsumexp(scores_BxExE, axis=-1) - scores_BxE


def weighted_sum(losses: jax.Array, weights: jax.Array, total: jax.Array) -> jax.Array:
  """Sum of weight / total · loss; places without weight add 0, whatever is in them."""
  return jnp.where(weights > 0, losses * (weights / total), 0.0).sum()


def _same(groups_BxE: jax.Array) -> jax.Array:
  return groups_BxE[:, :, None] == groups_BxE[:, None, :]
