"""Logits processors and sampling filters: pure functions of the tokens so far and their scores.

Each is f(history, scores_BxV, *arguments) and returns new scores, float32 B x V. Array arguments
may be traced, so that another temperature does not compile again. The rules are those of
transformers' LogitsProcessor classes of the same names, with one difference: padding on the left is
no part of a row here, so that a row gets the same scores in a batch as alone.

Letters of this module: E listed ids · C sequences that have a bias · N ids of a short run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEVER = -jnp.inf


class History(NamedTuple):
  """The tokens before the one to be chosen.

  ids_BxS: a buffer, filled up to column `end`.
  left_pad_B: columns of padding before each row.
  end: filled columns, the same for all rows.
  prompt_width: columns of the prompt, padding included: end - prompt_width tokens are new.
  negative_logits_BxV: logits after the negative prompts, if there are any (guidance_scale).
  """

  ids_BxS: jax.Array
  left_pad_B: jax.Array
  end: jax.Array
  prompt_width: jax.Array
  negative_logits_BxV: jax.Array | None = None

  @property
  def real_BxS(self) -> jax.Array:
    column_1xS = jnp.arange(self.ids_BxS.shape[1])[None]
    return (column_1xS >= self.left_pad_B[:, None]) & (column_1xS < self.end)

  @property
  def new_BxS(self) -> jax.Array:
    """The columns after the prompt."""
    return self.real_BxS & (jnp.arange(self.ids_BxS.shape[1])[None] >= self.prompt_width)

  def last_BxN(self, n: int) -> jax.Array:
    """The last n ids of each row; -1 where the row is shorter."""
    column_N = self.end - n + jnp.arange(n)
    ids_BxN = jnp.take(self.ids_BxS, jnp.maximum(column_N, 0), axis=1)
    return jnp.where(column_N[None] >= self.left_pad_B[:, None], ids_BxN, -1)


def _is_one_of(ids_E: jax.Array, V: int) -> jax.Array:
  """Which of V ids are listed, bool V; an id of -1 lists nothing."""
  return (jnp.arange(V)[:, None] == ids_E[None]).any(-1)


def _marked(ids_BxS: jax.Array, marked_BxS: jax.Array, V: int) -> jax.Array:
  """Which of V ids occur at a marked place of each row, bool B x V."""
  B = ids_BxS.shape[0]
  ids_BxS = jnp.where(marked_BxS, ids_BxS, V)
  found_BxV = jnp.zeros((B, V), bool)
  return found_BxV.at[jnp.arange(B)[:, None], ids_BxS].set(True, mode="drop")


# --- processors, in the order in which they are applied -------------------------------------------


def guidance(history: History, scores_BxV: jax.Array, scale: jax.Array) -> jax.Array:
  """Classifier-free guidance: away from the log-probabilities after the negative prompt."""
  assert history.negative_logits_BxV is not None
  negative_BxV = jax.nn.log_softmax(history.negative_logits_BxV)
  return scale * (jax.nn.log_softmax(scores_BxV) - negative_BxV) + negative_BxV


def sequence_bias(
  history: History, scores_BxV: jax.Array, groups: list[tuple[jax.Array, jax.Array, jax.Array]]
) -> jax.Array:
  """Adds a bias to the last id of a sequence where the row ends with the ids before it.

  groups: (prefixes_CxN, last_C, bias_C) for each number N of ids before the last, which may be 0.
  """
  bias_BxV = jnp.zeros_like(scores_BxV)
  for prefixes_CxN, last_C, bias_C in groups:
    last_BxN = history.last_BxN(prefixes_CxN.shape[1])
    matches_BxC = (last_BxN[:, None] == prefixes_CxN[None]).all(-1)
    bias_BxV = bias_BxV.at[:, last_C].add(jnp.where(matches_BxC, bias_C[None], 0.0))
  return scores_BxV + bias_BxV


def repetition_penalty(history: History, scores_BxV: jax.Array, penalty: jax.Array) -> jax.Array:
  """Divides positive and multiplies negative scores of ids that occur in the row, once each."""
  seen_BxV = _marked(history.ids_BxS, history.real_BxS, scores_BxV.shape[1])
  penalized_BxV = jnp.where(scores_BxV < 0, scores_BxV * penalty, scores_BxV / penalty)
  return jnp.where(seen_BxV, penalized_BxV, scores_BxV)


def count_penalties(
  history: History, scores_BxV: jax.Array, presence: jax.Array, frequency: jax.Array
) -> jax.Array:
  """Subtracts `presence` from ids among the new tokens, and `frequency` for each time they occur.

  Source: OpenAI's API, by which the prompt does not count; transformers has no such processor.
  """
  B, V = scores_BxV.shape
  ids_BxS = jnp.where(history.new_BxS, history.ids_BxS, V)
  count_BxV = jnp.zeros((B, V)).at[jnp.arange(B)[:, None], ids_BxS].add(1.0, mode="drop")
  return scores_BxV - presence * (count_BxV > 0) - frequency * count_BxV


def no_repeat_ngram(history: History, scores_BxV: jax.Array, size: jax.Array) -> jax.Array:
  """Forbids ids that would complete an n-gram of `size` ids which the row has already; 0: none."""
  ids_BxS, S = history.ids_BxS, history.ids_BxS.shape[1]
  column_1xS = jnp.arange(S)[None]
  # Columns that an n-gram of the row may end at, and then those where it is the one in question.
  ends_BxS = (size > 0) & (column_1xS < history.end)
  ends_BxS &= column_1xS - (size - 1) >= history.left_pad_B[:, None]

  def with_one_more(i: jax.Array, ends_BxS: jax.Array) -> jax.Array:
    before_BxS = jnp.roll(ids_BxS, i + 1, axis=1)
    return ends_BxS & (before_BxS == jnp.take(ids_BxS, history.end - 1 - i, axis=1)[:, None])

  # One that is longer than the row has been ruled out already.
  ends_BxS = jax.lax.fori_loop(0, jnp.minimum(size - 1, S), with_one_more, ends_BxS)
  return jnp.where(_marked(ids_BxS, ends_BxS, scores_BxV.shape[1]), _NEVER, scores_BxV)


def min_length(
  history: History, scores_BxV: jax.Array, length: jax.Array, eos_E: jax.Array
) -> jax.Array:
  """No end of text before `length` columns, prompt and padding included, are filled."""
  banned_V = _is_one_of(eos_E, scores_BxV.shape[1]) & (history.end < length)
  return jnp.where(banned_V[None], _NEVER, scores_BxV)


def min_new_tokens(
  history: History, scores_BxV: jax.Array, count: jax.Array, eos_E: jax.Array
) -> jax.Array:
  """No end of text before `count` new tokens."""
  return min_length(history, scores_BxV, history.prompt_width + count, eos_E)


def _forced(scores_BxV: jax.Array, ids_E: jax.Array, now: jax.Array) -> jax.Array:
  forced_V = jnp.where(_is_one_of(ids_E, scores_BxV.shape[1]), 0.0, _NEVER)
  return jnp.where(now, forced_V[None], scores_BxV)


def forced_bos(history: History, scores_BxV: jax.Array, id_E: jax.Array) -> jax.Array:
  """Only this id after the prompt; transformers does it for a prompt of one token."""
  return _forced(scores_BxV, id_E, history.end == history.prompt_width)


def forced_eos(
  history: History, scores_BxV: jax.Array, max_length: jax.Array, ids_E: jax.Array
) -> jax.Array:
  """Only these ids as the last token that max_length allows."""
  return _forced(scores_BxV, ids_E, history.end == max_length - 1)


def remove_invalid_values(history: History, scores_BxV: jax.Array) -> jax.Array:
  """NaN becomes 0, infinities the largest and smallest float32."""
  largest = jnp.finfo(scores_BxV.dtype).max
  scores_BxV = jnp.where(jnp.isnan(scores_BxV), 0.0, scores_BxV)
  return jnp.clip(scores_BxV, -largest, largest)


def exponential_decay_length_penalty(
  history: History, scores_BxV: jax.Array, start: jax.Array, factor: jax.Array, eos_E: jax.Array
) -> jax.Array:
  """Adds |score| · (factor^n - 1) to the ends of text, n being the new tokens beyond `start`."""
  beyond = history.end - history.prompt_width - start
  lift_BxV = jnp.abs(scores_BxV) * (jnp.power(factor, beyond.astype(jnp.float32)) - 1)
  lift_BxV = jnp.where(jnp.isfinite(scores_BxV), lift_BxV, 0.0)
  lifted_V = _is_one_of(eos_E, scores_BxV.shape[1]) & (beyond > 0)
  return jnp.where(lifted_V[None], scores_BxV + lift_BxV, scores_BxV)


def suppress_tokens(history: History, scores_BxV: jax.Array, ids_E: jax.Array) -> jax.Array:
  return jnp.where(_is_one_of(ids_E, scores_BxV.shape[1])[None], _NEVER, scores_BxV)


def begin_suppress_tokens(
  history: History, scores_BxV: jax.Array, ids_E: jax.Array, begin: jax.Array
) -> jax.Array:
  """Forbids ids as new token number `begin`."""
  now = history.end == history.prompt_width + begin
  return jnp.where(now, suppress_tokens(history, scores_BxV, ids_E), scores_BxV)


def renormalize(history: History, scores_BxV: jax.Array) -> jax.Array:
  return jax.nn.log_softmax(scores_BxV)


# --- sampling filters, in the order in which they are applied -------------------------------------


def temperature(history: History, scores_BxV: jax.Array, value: jax.Array) -> jax.Array:
  return scores_BxV / value


def top_h(history: History, scores_BxV: jax.Array, share: jax.Array) -> jax.Array:
  """Keeps the likeliest ids whose entropies sum to at most `share` of that of the top 100."""
  top_BxN, id_BxN = jax.lax.top_k(scores_BxV, min(100, scores_BxV.shape[1]))
  probs_BxN, log_BxN = jax.nn.softmax(top_BxN), jax.nn.log_softmax(top_BxN)
  # The partial sums from probabilities, the total from log-probabilities: as transformers does.
  terms_BxN = jnp.where(probs_BxN > 0, -probs_BxN * jnp.log(probs_BxN), 0.0)
  entropy_Bx1 = -jnp.where(probs_BxN > 0, probs_BxN * log_BxN, 0.0).sum(-1, keepdims=True)
  sum_BxN = jnp.cumsum(terms_BxN, axis=-1)
  keep_BxN = sum_BxN <= entropy_Bx1 * share
  keep_BxN = keep_BxN.at[:, 0].set(True)
  return jnp.where(_marked(id_BxN, keep_BxN, scores_BxV.shape[1]), scores_BxV, _NEVER)


def _ordered(scores_BxV: jax.Array) -> jax.Array:
  """Integers, uint32, in the order of the scores."""
  bits_BxV = jax.lax.bitcast_convert_type(scores_BxV.astype(jnp.float32) + 0.0, jnp.uint32)  # no -0
  negative_BxV = bits_BxV >> 31 == 1
  return jnp.where(negative_BxV, ~bits_BxV, bits_BxV | jnp.uint32(1 << 31))


def _largest_that(holds: Callable[[jax.Array], jax.Array], B: int) -> jax.Array:
  """The largest uint32, B x 1, for which `holds` is True, as it is for all smaller ones.

  A binary search of 32 passes over the vocabulary: a tenth of the time of XLA's sort on CPU.
  """

  def set_bit(i: jax.Array, bound_Bx1: jax.Array) -> jax.Array:
    higher_Bx1 = bound_Bx1 | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(holds(higher_Bx1), higher_Bx1, bound_Bx1)

  return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((B, 1), jnp.uint32))


def _in_top(scores_BxV: jax.Array, k: int | jax.Array) -> jax.Array:
  """Which scores are not below the k-th largest of their row, bool B x V."""
  B, V = scores_BxV.shape
  if isinstance(k, int) and k == 1:
    return scores_BxV >= scores_BxV.max(-1, keepdims=True)
  ordered_BxV = _ordered(scores_BxV)
  k = jnp.minimum(k, V)
  kth_Bx1 = _largest_that(lambda x_Bx1: (ordered_BxV >= x_Bx1).sum(-1, keepdims=True) >= k, B)
  return ordered_BxV >= kth_Bx1


def top_k(history: History, scores_BxV: jax.Array, k: jax.Array, min_keep: int) -> jax.Array:
  """Keeps scores not below the k-th largest, ties included."""
  return jnp.where(_in_top(scores_BxV, jnp.maximum(k, min_keep)), scores_BxV, _NEVER)


def top_p(history: History, scores_BxV: jax.Array, mass: jax.Array, min_keep: int) -> jax.Array:
  """Drops the unlikeliest ids whose probabilities sum to at most 1 - mass; at 1 none.

  Ids of equal probability are kept or dropped together; transformers, which sorts, may split them.
  """
  ordered_BxV, probs_BxV = _ordered(scores_BxV), jax.nn.softmax(scores_BxV)

  def may_be_dropped(bound_Bx1: jax.Array) -> jax.Array:
    below_BxV = jnp.where(ordered_BxV < bound_Bx1, probs_BxV, 0.0)
    return (below_BxV.sum(-1, keepdims=True) <= 1 - mass) & (mass < 1)

  keep_BxV = ordered_BxV >= _largest_that(may_be_dropped, len(scores_BxV))
  return jnp.where(keep_BxV | _in_top(scores_BxV, min_keep), scores_BxV, _NEVER)


def min_p(history: History, scores_BxV: jax.Array, share: jax.Array, min_keep: int) -> jax.Array:
  """Drops ids less likely than `share` of the likeliest."""
  probs_BxV = jax.nn.softmax(scores_BxV)
  drop_BxV = probs_BxV < share * probs_BxV.max(-1, keepdims=True)
  _, kept_BxN = jax.lax.top_k(probs_BxV, min(min_keep, scores_BxV.shape[1]))
  kept_BxV = _marked(kept_BxN, jnp.ones_like(kept_BxN, bool), scores_BxV.shape[1])
  return jnp.where(drop_BxV & ~kept_BxV, _NEVER, scores_BxV)


def typical_p(history: History, scores_BxV: jax.Array, mass: jax.Array, min_keep: int) -> jax.Array:
  """Keeps ids whose surprisal is nearest to the entropy, up to `mass` of probability."""
  log_BxV = jax.nn.log_softmax(scores_BxV)
  entropy_Bx1 = -jnp.nansum(jnp.exp(log_BxV) * log_BxV, -1, keepdims=True)
  distance_BxV = jnp.abs(-log_BxV - entropy_Bx1)
  order_BxV = jnp.argsort(distance_BxV, axis=-1)
  sorted_BxV = jnp.take_along_axis(distance_BxV, order_BxV, -1)
  mass_BxV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores_BxV, order_BxV, -1)), -1)
  last_Bx1 = jnp.minimum((mass_BxV < mass).sum(-1, keepdims=True), scores_BxV.shape[1] - 1)
  drop_BxV = sorted_BxV > jnp.take_along_axis(sorted_BxV, last_Bx1, -1)
  drop_BxV = drop_BxV.at[:, :min_keep].set(False)
  return jnp.where(_marked(order_BxV, drop_BxV, scores_BxV.shape[1]), _NEVER, scores_BxV)


def epsilon_cutoff(
  history: History, scores_BxV: jax.Array, epsilon: jax.Array, min_keep: int
) -> jax.Array:
  """Drops ids less likely than epsilon."""
  drop_BxV = (jax.nn.softmax(scores_BxV) < epsilon) & ~_in_top(scores_BxV, min_keep)
  return jnp.where(drop_BxV, _NEVER, scores_BxV)


def eta_cutoff(
  history: History, scores_BxV: jax.Array, epsilon: jax.Array, min_keep: int
) -> jax.Array:
  """Drops ids less likely than the smaller of epsilon and √epsilon · e^-entropy."""
  log_BxV = jax.nn.log_softmax(scores_BxV)
  # As in transformers: ids of probability 0 add nothing.
  terms_BxV = jnp.where(jnp.exp(log_BxV) > 0, jnp.exp(log_BxV) * log_BxV, 0.0)
  entropy_Bx1 = -terms_BxV.sum(-1, keepdims=True)
  eta_Bx1 = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy_Bx1))
  return epsilon_cutoff(history, scores_BxV, eta_Bx1, min_keep)
