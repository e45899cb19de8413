"""Speculative decoding of one row: draft tokens that the model checks several at a time.

Drafts come from a smaller model of the same vocabulary (a draft model), or from the row itself:
what followed an earlier occurrence of its last tokens (prompt lookup). The model runs all of them
in one forward pass and keeps those that it would have chosen. Greedy output is that of plain
decoding; sampled output has the same distribution, by the rejection rule of Leviathan et al.
(2023), arXiv:2211.17192.

Letters of this module: G draft tokens · T = G + 1 tokens of a pass · S the buffer's length.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.generation import kv_cache, sampling
from gptneo_jax.generation.cached_forward import forward_with_cache, unembed
from gptneo_jax.generation.decode import (
  BAD_DRAFTS,
  BAD_LOGITS,
  BAD_SCORES,
  Continuation,
  GenerationRequest,
  Settings,
  make_settings,
  not_finite,
  prefill,
)
from gptneo_jax.generation.kv_cache import KVCache
from gptneo_jax.generation.sampling import History


class PromptLookup(NamedTuple):
  """Proposes `draft_tokens` tokens that followed an earlier occurrence of the last ≤ `ngram`."""

  draft_tokens: int
  ngram: int


class DraftModel(NamedTuple):
  """Proposes `draft_tokens` tokens of another model."""

  draft_tokens: int
  config: ModelConfig
  unstacked_params: Any


class Speculation(NamedTuple):
  """A continuation of one row; of `proposed` draft tokens `accepted` were kept."""

  made: Continuation
  proposed: int
  accepted: int


class _State(NamedTuple):
  ids_1xS: jax.Array
  end: jax.Array  # filled columns
  done: jax.Array
  stop_state_1: jax.Array
  proposed: jax.Array
  accepted: jax.Array
  fault: jax.Array  # of the last step (generation/decode.py); the loop ends with one
  cache: KVCache
  draft_cache: KVCache


def run(
  config: ModelConfig,
  unstacked_params: Any,
  request: GenerationRequest,
  drafter: PromptLookup | DraftModel,
) -> Speculation:
  """All of a request of one row, with at most kv_cache.SPECULATION_PLACES draft tokens a time."""
  W, last = request.width, request.length
  columns = last + drafter.draft_tokens
  S = kv_cache.bucketed_length(columns, max(columns, config.max_position_embeddings))
  prompt = (request.ids_BxW, request.left_pad_B, S)
  draft_params, draft_cache = None, ()
  if isinstance(drafter, DraftModel):
    draft_params = drafter.unstacked_params
    draft_cache = prefill(drafter.config, draft_params, *prompt)
    drafter = drafter._replace(unstacked_params=None)  # what remains is static
  ids_1xS = np.full((1, S), request.pad, np.int32)
  ids_1xS[:, :W] = request.ids_BxW
  stop_state_1 = request.stop_state_B
  state = _State(
    ids_1xS=jnp.asarray(ids_1xS),
    end=jnp.int32(W),
    done=jnp.array(False),
    stop_state_1=jnp.asarray(np.zeros(1, np.int32) if stop_state_1 is None else stop_state_1),
    proposed=jnp.int32(0),
    accepted=jnp.int32(0),
    fault=jnp.int32(0),
    cache=prefill(config, unstacked_params, *prompt),
    draft_cache=draft_cache,
  )
  state = _run(
    config, drafter, request.pipeline.processors, request.sample, unstacked_params, draft_params,
    make_settings(request), state, np.int32(last),
  )  # fmt: skip
  end = int(state.end)
  made = Continuation(
    ids_BxN=np.asarray(state.ids_1xS)[:, W:end],
    count_B=np.array([end - W]),
    kept={},
    fault=int(state.fault),
  )
  return Speculation(made, proposed=int(state.proposed), accepted=int(state.accepted))


@functools.partial(
  jax.jit, static_argnames=("config", "drafter", "processors", "sample"), donate_argnames="state"
)
def _run(
  config, drafter, processors, sample, unstacked_params, draft_params, settings, state, last
):  # fmt: skip
  def step(state: _State):
    return _step(
      config, drafter, processors, sample, unstacked_params, draft_params, settings, last, state
    )

  def unfinished(state: _State):
    return (state.end < last) & ~state.done & (state.fault == 0)

  return jax.lax.while_loop(unfinished, step, state)


def _step(
  config, drafter, processors, sample, unstacked_params, draft_params, settings: Settings, last,
  state: _State,
) -> _State:  # fmt: skip
  G, column = drafter.draft_tokens, state.end - 1
  number = state.end - settings.prompt_width
  draw, accept, again = jax.random.split(jax.random.fold_in(settings.keys_B[0], number), 3)
  draft_cache, draft_probs_GxV = state.draft_cache, None
  if isinstance(drafter, PromptLookup):
    draft_G, found = _looked_up(state, drafter)
  else:
    draft_G, draft_probs_GxV, draft_cache = _drafted(
      drafter, processors, sample, draft_params, settings, state, draw
    )
    found = jnp.int32(G)

  # The model's scores after the last token and after each draft token.
  ids_1xS = jax.lax.dynamic_update_slice(state.ids_1xS, draft_G[None], (0, state.end))
  token_1xT = jax.lax.dynamic_slice_in_dim(ids_1xS, column, G + 1, axis=1)
  hidden_Dx1xT, cache = forward_with_cache(
    config, unstacked_params, state.cache, token_1xT, column, jnp.int32(G + 1), settings.left_pad_R
  )
  logits_TxV = unembed(config, unstacked_params, hidden_Dx1xT[:, 0])

  def processed(logits_V, end):
    history = _history(ids_1xS, end, settings)
    return sampling.process_logits(processors, settings.values, history, logits_V[None])[0]

  scores_TxV = jax.vmap(processed)(logits_TxV, state.end + jnp.arange(G + 1))
  if sample:
    accepted, token = _by_rejection(scores_TxV, draft_G, draft_probs_GxV, accept, again)
  else:
    choice_T = scores_TxV.argmax(-1).astype(jnp.int32)
    accepted = jnp.cumprod(choice_T[:G] == draft_G).sum()
    token = choice_T[accepted]

  # The accepted draft tokens, then the model's own: as many as fit, and none after an end.
  place_T = jnp.arange(G + 1)
  new_T = jnp.where(place_T < accepted, jnp.append(draft_G, 0), token)
  ends_T = (new_T[:, None] == settings.eos_E[None]).any(-1)
  stop_state_T = jnp.zeros(G + 1, jnp.int32)
  if settings.stops is not None:
    stop_state_1 = state.stop_state_1
    for i in range(G + 1):
      hit_1, stop_state_1 = settings.stops.step(stop_state_1, new_T[i : i + 1])
      ends_T = ends_T.at[i].set(ends_T[i] | hit_1[0])
      stop_state_T = stop_state_T.at[i].set(stop_state_1[0])
  count = jnp.minimum(accepted + 1, last - state.end)
  ending_T = ends_T & (place_T < count)
  count = jnp.where(ending_T.any(), ending_T.argmax() + 1, count)
  new_T = jnp.where(place_T < count, new_T, settings.pad)
  return _State(
    ids_1xS=jax.lax.dynamic_update_slice(state.ids_1xS, new_T[None], (0, state.end)),
    end=state.end + count,
    done=ending_T.any(),
    stop_state_1=stop_state_T[count - 1][None],
    proposed=state.proposed + found,
    accepted=state.accepted + jnp.minimum(jnp.minimum(accepted, found), count),
    fault=_fault(processors, logits_TxV, scores_TxV, draft_probs_GxV, place_T < count),
    cache=cache,
    draft_cache=draft_cache,
  )


def _history(ids_1xS: jax.Array, end: jax.Array, settings: Settings) -> History:
  return History(
    ids_BxS=ids_1xS,
    left_pad_B=settings.left_pad_R,
    end=end,
    prompt_width=settings.prompt_width,
  )


def _fault(processors, logits_TxV, scores_TxV, draft_probs_GxV, used_T) -> jax.Array:
  fault = jnp.where((~jnp.isfinite(scores_TxV.max(-1)) & used_T).any(), BAD_SCORES, 0)
  fault = jnp.where((not_finite(processors, logits_TxV) & used_T).any(), BAD_LOGITS, fault)
  if draft_probs_GxV is None:
    return fault
  return jnp.where(jnp.isfinite(draft_probs_GxV).all(), fault, BAD_DRAFTS)


def _by_rejection(scores_TxV, draft_G, draft_probs_GxV, accept, again) -> tuple[Any, Any]:
  """How many draft tokens are accepted, and the token drawn after them.

  draft_probs_GxV: what the draft tokens were drawn by; None where they were not drawn.
  """
  G, V = len(draft_G), scores_TxV.shape[1]
  if draft_probs_GxV is None:
    draft_probs_GxV = jax.nn.one_hot(draft_G, V)
  probs_TxV = jax.nn.softmax(scores_TxV)
  at_draft = lambda probs_GxV: jnp.take_along_axis(probs_GxV, draft_G[:, None], 1)[:, 0]
  kept_G = jax.random.uniform(accept, (G,)) * at_draft(draft_probs_GxV) < at_draft(probs_TxV[:G])
  accepted = jnp.cumprod(kept_G).sum()
  # In place of the first that is rejected: a draw from what the model's probabilities have in
  # excess of the drafter's.
  taken_TxV = jnp.concatenate([draft_probs_GxV, jnp.zeros((1, V))])
  rest_V = jnp.maximum(probs_TxV[accepted] - taken_TxV[accepted], 0.0)
  return accepted, jax.random.categorical(again, jnp.log(rest_V)).astype(jnp.int32)


def _drafted(
  drafter: DraftModel, processors, sample, draft_params, settings: Settings, state: _State, key
):  # fmt: skip
  """G tokens of the draft model, the probabilities they were drawn by, and its new cache."""

  def one(carry, i):
    ids_1xS, cache = carry
    column = state.end - 1 + i
    token_1x1 = jax.lax.dynamic_slice_in_dim(ids_1xS, column, 1, axis=1)
    hidden_Dx1x1, cache = forward_with_cache(
      drafter.config, draft_params, cache, token_1x1, column, jnp.int32(1), settings.left_pad_R
    )
    logits_1xV = unembed(drafter.config, draft_params, hidden_Dx1x1[:, :, 0])
    history = _history(ids_1xS, column + 1, settings)
    scores_1xV = sampling.process_logits(processors, settings.values, history, logits_1xV)
    token_1 = sampling.sample_token(jax.random.fold_in(key, i)[None], scores_1xV, sample)
    ids_1xS = jax.lax.dynamic_update_slice(ids_1xS, token_1[None], (0, column + 1))
    return (ids_1xS, cache), (token_1[0], jax.nn.softmax(scores_1xV[0]))

  # One step more than there are draft tokens: it puts the last, which may be kept, into the cache.
  (_, cache), (draft_T, probs_TxV) = jax.lax.scan(
    one, (state.ids_1xS, state.draft_cache), jnp.arange(drafter.draft_tokens + 1)
  )
  return draft_T[:-1], probs_TxV[:-1], cache


def _looked_up(state: _State, drafter: PromptLookup) -> tuple[jax.Array, jax.Array]:
  """What followed the last earlier occurrence of the last n tokens, n as large as possible.

  Returns G draft tokens, and how many of them were found: the others are padding.
  """
  ids_S, G = state.ids_1xS[0], drafter.draft_tokens
  S = len(ids_S)
  follows, found = state.end, jnp.array(False)
  for n in range(drafter.ngram, 0, -1):
    first_S = jnp.arange(S - n)  # where an occurrence may begin
    last_n = jax.lax.dynamic_slice_in_dim(ids_S, jnp.maximum(state.end - n, 0), n)
    matches_S = (first_S + n < state.end) & (state.end > n)
    for i in range(n):
      matches_S &= ids_S[i : i + len(first_S)] == last_n[i]
    here = jnp.where(matches_S, first_S + n, -1).max()
    follows = jnp.where(found | (here < 0), follows, here)
    found |= here >= 0
  place_G = follows + jnp.arange(G)
  draft_G = jnp.where(place_G < state.end, ids_S[jnp.minimum(place_G, S - 1)], 0)
  return draft_G, jnp.minimum(state.end - follows, G)
