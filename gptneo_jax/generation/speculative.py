"""Speculative decoding of one row: guesses that the model checks several at a time.

Guesses come from a smaller model of the same vocabulary, or from the row itself: what followed when
its last tokens stood before. The model reads all guesses in one pass and keeps those that it would
have made. Greedy output is that of plain decoding; sampled output has the same distribution, by the
rejection rule of Leviathan et al. (2023), arXiv:2211.17192.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.generation import kv_cache as caches
from gptneo_jax.generation import sampling
from gptneo_jax.generation.cached_forward import extend, unembed
from gptneo_jax.generation.decode import (
  BAD_GUESSES,
  BAD_LOGITS,
  BAD_SCORES,
  Continuation,
  Settings,
  Task,
  make_settings,
  not_finite,
  read_prompt,
)
from gptneo_jax.generation.sampling import History


class Lookup(NamedTuple):
  """Guesses from the row itself: so many, behind at most so many tokens that stood before."""

  guesses: int
  ngram: int


class Draft(NamedTuple):
  """Guesses from another model."""

  guesses: int
  config: ModelConfig
  layered: Any


class Speculation(NamedTuple):
  """A continuation of one row; of `proposed` guesses `accepted` were what the model chose too."""

  made: Continuation
  proposed: int
  accepted: int


class _State(NamedTuple):
  ids_1xS: jax.Array
  end: jax.Array
  done: jax.Array
  stop_1: jax.Array
  proposed: jax.Array
  accepted: jax.Array
  fault: jax.Array  # of the last step (generation/decode.py); the loop ends with one
  cache: caches.Cache
  draft_cache: caches.Cache


def run(config: ModelConfig, layered: Any, task: Task, guesser: Lookup | Draft) -> Speculation:
  """The whole of a task of one row. At most cache.SPARE_SLOTS guesses at a time."""
  W, last = task.width, task.width + task.new_tokens
  columns = last + guesser.guesses
  S = caches.capacity(columns, max(columns, config.max_position_embeddings))
  cache, draft_cache = read_prompt(config, layered, task.ids_BxW, task.start_B, S), ()
  if isinstance(guesser, Draft):
    draft_cache = read_prompt(guesser.config, guesser.layered, task.ids_BxW, task.start_B, S)
  ids_1xS = np.full((1, S), task.pad, np.int32)
  ids_1xS[:, :W] = task.ids_BxW
  stop_1 = np.zeros(1, np.int32) if task.stop_state_B is None else task.stop_state_B
  state = _State(
    jnp.asarray(ids_1xS), jnp.int32(W), jnp.array(False), jnp.asarray(stop_1), jnp.int32(0),
    jnp.int32(0), jnp.int32(0), cache, draft_cache,
  )  # fmt: skip
  static = guesser._replace(layered=None) if isinstance(guesser, Draft) else guesser
  draft_layered = guesser.layered if isinstance(guesser, Draft) else None
  state = _run(
    config, static, task.plan.stages, task.sample, layered, draft_layered, make_settings(task),
    state, np.int32(last),
  )  # fmt: skip
  end = int(state.end)
  ids_1xN = np.asarray(state.ids_1xS)[:, W:end]
  made = Continuation(ids_1xN, np.array([end - W]), {}, int(state.fault))
  return Speculation(made, int(state.proposed), int(state.accepted))


@functools.partial(
  jax.jit, static_argnames=("config", "guesser", "stages", "sample"), donate_argnames="state"
)
def _run(config, guesser, stages, sample, layered, draft_layered, settings, state, last):
  def step(state: _State):
    return _step(
      config, guesser, stages, sample, layered, draft_layered, settings, last, state
    )  # fmt: skip

  def unfinished(state: _State):
    return (state.end < last) & ~state.done & (state.fault == 0)

  return jax.lax.while_loop(unfinished, step, state)


def _step(
  config, guesser, stages, sample, layered, draft_layered, settings: Settings, last, state: _State
) -> _State:
  G, column = guesser.guesses, state.end - 1
  number = state.end - settings.prompt_width
  draw, accept, again = jax.random.split(jax.random.fold_in(settings.keys_B[0], number), 3)
  draft_cache, guess_probs_GxV = state.draft_cache, None
  if isinstance(guesser, Lookup):
    guess_G, valid = _looked_up(state, guesser)
  else:
    guess_G, guess_probs_GxV, draft_cache = _drafted(
      guesser, stages, sample, draft_layered, settings, state, draw
    )
    valid = jnp.int32(G)

  # What the model says behind the last token and behind each guess.
  ids_1xS = jax.lax.dynamic_update_slice(state.ids_1xS, guess_G[None], (0, state.end))
  token_1xT = jax.lax.dynamic_slice_in_dim(ids_1xS, column, G + 1, axis=1)
  hidden_Dx1xT, cache = extend(
    config, layered, state.cache, token_1xT, column, jnp.int32(G + 1), settings.start_R
  )
  logits_TxV = unembed(config, layered, hidden_Dx1xT[:, 0])

  def processed(logits_V, end):
    history = History(ids_1xS, settings.start_R, end, settings.prompt_width)
    return sampling.apply(stages, settings.values, history, logits_V[None])[0]

  scores_TxV = jax.vmap(processed)(logits_TxV, state.end + jnp.arange(G + 1))
  if sample:
    accepted, token = _by_rejection(scores_TxV, guess_G, guess_probs_GxV, accept, again)
  else:
    choice_T = scores_TxV.argmax(-1).astype(jnp.int32)
    accepted = jnp.cumprod(choice_T[:G] == guess_G).sum()
    token = choice_T[accepted]

  # The guesses kept, then the model's own; no more than fit, and none behind an end.
  place_T = jnp.arange(G + 1)
  new_T = jnp.where(place_T < accepted, jnp.append(guess_G, 0), token)
  ends_T = (new_T[:, None] == settings.eos_E).any(-1)
  stop_T = jnp.zeros(G + 1, jnp.int32)
  if settings.stops is not None:
    stop_1 = state.stop_1
    for i in range(G + 1):
      hit_1, stop_1 = settings.stops.step(stop_1, new_T[i : i + 1])
      ends_T = ends_T.at[i].set(ends_T[i] | hit_1[0])
      stop_T = stop_T.at[i].set(stop_1[0])
  count = jnp.minimum(accepted + 1, last - state.end)
  ending_T = ends_T & (place_T < count)
  count = jnp.where(ending_T.any(), ending_T.argmax() + 1, count)
  new_T = jnp.where(place_T < count, new_T, settings.pad)
  fault = _fault(stages, logits_TxV, scores_TxV, guess_probs_GxV, place_T < count)
  return _State(
    jax.lax.dynamic_update_slice(state.ids_1xS, new_T[None], (0, state.end)),
    state.end + count,
    ending_T.any(),
    stop_T[count - 1][None],
    state.proposed + valid,
    state.accepted + jnp.minimum(jnp.minimum(accepted, valid), count),
    fault,
    cache,
    draft_cache,
  )


def _fault(stages, logits_TxV, scores_TxV, guess_probs_GxV, used_T) -> jax.Array:
  fault = jnp.where((~jnp.isfinite(scores_TxV.max(-1)) & used_T).any(), BAD_SCORES, 0)
  fault = jnp.where((not_finite(stages, logits_TxV) & used_T).any(), BAD_LOGITS, fault)
  if guess_probs_GxV is None:
    return fault
  return jnp.where(jnp.isfinite(guess_probs_GxV).all(), fault, BAD_GUESSES)


def _by_rejection(scores_TxV, guess_G, guess_probs_GxV, accept, again) -> tuple[Any, Any]:
  """How many guesses are kept, and the token drawn behind them.

  guess_probs_GxV: what the guesses were drawn by; None where there was no choice.
  """
  G, V = len(guess_G), scores_TxV.shape[1]
  if guess_probs_GxV is None:
    guess_probs_GxV = jax.nn.one_hot(guess_G, V)
  probs_TxV = jax.nn.softmax(scores_TxV)
  at_guess = lambda probs_GxV: jnp.take_along_axis(probs_GxV, guess_G[:, None], 1)[:, 0]  # noqa: E731
  kept_G = jax.random.uniform(accept, (G,)) * at_guess(guess_probs_GxV) < at_guess(probs_TxV[:G])
  accepted = jnp.cumprod(kept_G).sum()
  # Behind a guess that is not kept: from what the model says beyond what the guesser said.
  taken_TxV = jnp.concatenate([guess_probs_GxV, jnp.zeros((1, V))])
  rest_V = jnp.maximum(probs_TxV[accepted] - taken_TxV[accepted], 0.0)
  return accepted, jax.random.categorical(again, jnp.log(rest_V)).astype(jnp.int32)


def _drafted(guesser: Draft, stages, sample, layered, settings: Settings, state: _State, key):
  """G guesses, the probabilities they were drawn by, and the draft model's cache behind them."""

  def one(carry, i):
    ids_1xS, cache = carry
    column = state.end - 1 + i
    token_1x1 = jax.lax.dynamic_slice_in_dim(ids_1xS, column, 1, axis=1)
    hidden_Dx1x1, cache = extend(
      guesser.config, layered, cache, token_1x1, column, jnp.int32(1), settings.start_R
    )
    logits_1xV = unembed(guesser.config, layered, hidden_Dx1x1[:, :, 0])
    history = History(ids_1xS, settings.start_R, column + 1, settings.prompt_width)
    scores_1xV = sampling.apply(stages, settings.values, history, logits_1xV)
    token_1 = sampling.choose(jax.random.fold_in(key, i)[None], scores_1xV, sample)
    ids_1xS = jax.lax.dynamic_update_slice(ids_1xS, token_1[None], (0, column + 1))
    return (ids_1xS, cache), (token_1[0], jax.nn.softmax(scores_1xV[0]))

  # One step more than there are guesses: it reads the last, which may be kept.
  (_, cache), (guess_T, probs_TxV) = jax.lax.scan(
    one, (state.ids_1xS, state.draft_cache), jnp.arange(guesser.guesses + 1)
  )
  return guess_T[:-1], probs_TxV[:-1], cache


def _looked_up(state: _State, guesser: Lookup) -> tuple[jax.Array, jax.Array]:
  """What followed the last place where the last n tokens stood before, n as large as may be; and
  how many of the guesses that is: the others are padding."""
  ids_S, G = state.ids_1xS[0], guesser.guesses
  S = len(ids_S)
  follows, found = state.end, jnp.array(False)
  for n in range(guesser.ngram, 0, -1):
    first_N = jnp.arange(S - n)
    last_n = jax.lax.dynamic_slice_in_dim(ids_S, jnp.maximum(state.end - n, 0), n)
    matches_N = (first_N + n < state.end) & (state.end > n)
    for i in range(n):
      matches_N &= ids_S[i : i + len(first_N)] == last_n[i]
    here = jnp.where(matches_N, first_N + n, -1).max()
    follows = jnp.where(found | (here < 0), follows, here)
    found |= here >= 0
  place_G = follows + jnp.arange(G)
  guess_G = jnp.where(place_G < state.end, ids_S[jnp.minimum(place_G, S - 1)], 0)
  return guess_G, jnp.minimum(state.end - follows, G)
