"""Beam search as transformers does it, as one compiled loop.

Every prompt has M running beams. Each step takes the best C candidates among all continuations of
them, C being enough for M that do not end. Those among the first M that end join the finished
beams, of which the best M by sum of log-probabilities / length^length_penalty are kept. Source:
transformers' GenerationMixin._beam_search.

Letters of this module: M beams · C candidates · W columns of the prompts · S the buffer's length.
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
  BAD_LOGITS,
  BAD_SCORES,
  GenerationRequest,
  not_finite,
  prefill,
)
from gptneo_jax.generation.kv_cache import KVCache
from gptneo_jax.generation.sampling import History
from gptneo_jax.generation.stop_strings import StopTable

_OUT = -1e9  # score of what may not be chosen


class Beams(NamedTuple):
  """Settings of the search; of the beams of each prompt the best `returned` are returned."""

  num_beams: int
  returned: int
  length_penalty: float
  early_stopping: bool | str


class BeamContinuation(NamedTuple):
  """The `returned` best beams of each prompt, the best first; B counts those of all prompts.

  ids_BxN: new tokens, padded after count_B. scores_B: sum of log-probabilities / length^penalty.
  kept: 'logprobs' of the tokens, B x N, if requested.
  fault: as in decode.Continuation.
  """

  ids_BxN: np.ndarray
  count_B: np.ndarray
  scores_B: np.ndarray
  kept: dict[str, np.ndarray]
  fault: int = 0


class _Settings(NamedTuple):
  left_pad_BM: jax.Array  # of the B · M rows of the cache
  prompt_width: jax.Array
  last: jax.Array  # columns at most
  eos_E: jax.Array
  keys_B: jax.Array
  values: dict[str, tuple]  # of the pipeline
  stops: StopTable | None
  length_penalty: jax.Array


class _Sequences(NamedTuple):
  """Several sequences of each prompt: running beams, finished ones, or (as M) candidates."""

  ids_BxMxS: jax.Array
  length_BxM: jax.Array  # new tokens
  logprobs_BxMxS: jax.Array  # of the new tokens
  stop_state_BxM: jax.Array


class _Candidates(NamedTuple):
  """The best continuations of the running beams, best first."""

  sequences: _Sequences
  sum_BxC: jax.Array  # of log-probabilities
  parent_BxC: jax.Array  # the beam that each continues
  ends_BxC: jax.Array


class _State(NamedTuple):
  end: jax.Array  # filled columns
  running: _Sequences
  running_score_BxM: jax.Array
  done: _Sequences
  done_score_BxM: jax.Array
  is_done_BxM: jax.Array
  improvable_B: jax.Array  # whether a running beam may still beat a finished one
  stuck: jax.Array  # whether every candidate has ended
  fault: jax.Array  # of the last step (generation/decode.py); the loop ends with one
  cache: KVCache


def run(
  config: ModelConfig, unstacked_params: Any, request: GenerationRequest, beams: Beams
) -> BeamContinuation:
  """Searches to the end. Of request.outputs only 'logprobs' is returned."""
  M, W = beams.num_beams, request.width
  S = kv_cache.bucketed_length(request.length, config.max_position_embeddings)
  cache = prefill(config, unstacked_params, request.ids_BxW, request.left_pad_B, S)
  settings = _Settings(
    left_pad_BM=jnp.repeat(jnp.asarray(request.left_pad_B, jnp.int32), M),
    prompt_width=jnp.int32(W),
    last=jnp.int32(request.length),
    eos_E=jnp.array(request.eos or [-1], jnp.int32),
    keys_B=request.keys_B,
    values=request.pipeline.values,
    stops=jax.tree.map(jnp.asarray, request.stops),
    length_penalty=jnp.float32(beams.length_penalty),
  )
  C = max(2, 1 + max(1, len(request.eos))) * M
  done, score_BxM, fault = _search(
    config, request.pipeline.processors, request.sample, C, beams.early_stopping,
    unstacked_params, settings, _initial(request, M, S, _repeat(cache, M)),
  )  # fmt: skip
  best = lambda x: np.asarray(x)[:, : beams.returned].reshape(-1, *x.shape[2:])
  count_B = best(done.length_BxM)
  N = int(count_B.max())
  logprobs = {"logprobs": best(done.logprobs_BxMxS)[:, :N]}
  return BeamContinuation(
    ids_BxN=best(done.ids_BxMxS)[:, W : W + N],
    count_B=count_B,
    scores_B=best(score_BxM),
    kept=logprobs if "logprobs" in request.outputs else {},
    fault=int(fault),
  )


def _initial(request: GenerationRequest, M: int, S: int, cache: KVCache) -> _State:
  """The state before the first new token; of the equal beams of a prompt only the first counts."""
  B, W = request.ids_BxW.shape
  ids_BxMxS = np.full((B, M, S), request.pad, np.int32)
  ids_BxMxS[:, :, :W] = request.ids_BxW[:, None]
  stop_state_B = request.stop_state_B
  stop_state_B = np.zeros(B, np.int32) if stop_state_B is None else stop_state_B

  def sequences():  # called twice, so that each array of the state is its own
    return _Sequences(
      ids_BxMxS=jnp.asarray(ids_BxMxS),
      length_BxM=jnp.zeros((B, M), jnp.int32),
      logprobs_BxMxS=jnp.zeros((B, M, S)),
      stop_state_BxM=jnp.asarray(np.repeat(stop_state_B[:, None], M, 1)),
    )

  return _State(
    end=jnp.int32(W),
    running=sequences(),
    running_score_BxM=jnp.full((B, M), _OUT).at[:, 0].set(0.0),
    done=sequences(),
    done_score_BxM=jnp.full((B, M), _OUT),
    is_done_BxM=jnp.zeros((B, M), bool),
    improvable_B=jnp.ones(B, bool),
    stuck=jnp.array(False),
    fault=jnp.int32(0),
    cache=cache,
  )


@functools.partial(jax.jit, static_argnames="times")
def _repeat(cache, times):
  return kv_cache.repeat(cache, times)


@functools.partial(
  jax.jit, static_argnames=("config", "processors", "sample", "C", "early_stopping")
)
def _search(
  config, processors, sample, C, early_stopping, unstacked_params, settings, state
):  # fmt: skip
  def unfinished(state: _State):
    everything_done = state.is_done_BxM.all() & (early_stopping is True)
    continues = state.improvable_B.any() & ~everything_done & ~state.stuck
    return continues & (state.fault == 0)

  def step(state: _State):
    logprobs_BxMxV, cache, fault = _next_logprobs(
      config, processors, unstacked_params, settings, state
    )
    candidates = _candidates(sample, C, settings, state, logprobs_BxMxV)
    return _selected(early_stopping, settings, state, candidates, cache, fault)

  state = jax.lax.while_loop(unfinished, step, state)
  return state.done, state.done_score_BxM, state.fault


def _next_logprobs(config, processors, unstacked_params, settings: _Settings, state: _State):
  """Processed log-probabilities of the next token of each beam, the new cache, and the fault."""
  B, M, S = state.running.ids_BxMxS.shape
  column = state.end - 1
  ids_BMxS = state.running.ids_BxMxS.reshape(B * M, S)
  last_BMx1 = jax.lax.dynamic_slice_in_dim(ids_BMxS, column, 1, axis=1)
  hidden_DxBMx1, cache = forward_with_cache(
    config, unstacked_params, state.cache, last_BMx1, column, jnp.int32(1), settings.left_pad_BM
  )
  logits_BMxV = unembed(config, unstacked_params, hidden_DxBMx1[:, :, 0])
  history = History(
    ids_BxS=ids_BMxS,
    left_pad_B=settings.left_pad_BM,
    end=state.end,
    prompt_width=settings.prompt_width,
  )
  logprobs_BMxV = jax.nn.log_softmax(logits_BMxV)
  logprobs_BMxV = sampling.process_logits(processors, settings.values, history, logprobs_BMxV)
  logprobs_BxMxV = logprobs_BMxV.reshape(B, M, -1)
  best_B = (logprobs_BxMxV + state.running_score_BxM[:, :, None]).max((1, 2))  # NaN if any is
  fault = jnp.where((jnp.isfinite(best_B) | ~state.improvable_B).all(), 0, BAD_SCORES)
  fault = jnp.where(not_finite(processors, logits_BMxV).any(), BAD_LOGITS, fault)
  return logprobs_BxMxV, cache, fault


def _candidates(
  sample: bool, C: int, settings: _Settings, state: _State, logprobs_BxMxV: jax.Array
) -> _Candidates:
  """The best C continuations, or C drawn without replacement."""
  B, M, V = logprobs_BxMxV.shape
  number = state.end - settings.prompt_width
  sum_BxMV = (logprobs_BxMxV + state.running_score_BxM[:, :, None]).reshape(B, M * V)
  if sample:
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(settings.keys_B, number)
    noise_BxMV = jax.vmap(lambda key: jax.random.gumbel(key, (M * V,)))(keys_B)
    _, flat_BxC = jax.lax.top_k(sum_BxMV + noise_BxMV, C)
    sum_BxC = jnp.take_along_axis(sum_BxMV, flat_BxC, 1)
    order_BxC = jnp.argsort(-sum_BxC, axis=1)
    sum_BxC, flat_BxC = (jnp.take_along_axis(x, order_BxC, 1) for x in (sum_BxC, flat_BxC))
  else:
    sum_BxC, flat_BxC = jax.lax.top_k(sum_BxMV, C)
  parent_BxC, new_BxC = flat_BxC // V, (flat_BxC % V).astype(jnp.int32)
  logprob_BxC = jnp.take_along_axis(logprobs_BxMxV.reshape(B, M * V), flat_BxC, 1)
  before = _take(state.running, parent_BxC)
  ends_BxC = (new_BxC[..., None] == settings.eos_E[None, None]).any(-1) | (
    state.end + 1 >= settings.last
  )
  stop_state_BxC = before.stop_state_BxM
  if settings.stops is not None:
    hit_BxC, stop_state_BxC = settings.stops.step(stop_state_BxC, new_BxC)
    ends_BxC |= hit_BxC
  put = jax.lax.dynamic_update_slice_in_dim
  sequences = _Sequences(
    ids_BxMxS=put(before.ids_BxMxS, new_BxC[..., None], state.end, axis=2),
    length_BxM=jnp.full_like(before.length_BxM, number + 1),
    logprobs_BxMxS=put(before.logprobs_BxMxS, logprob_BxC[..., None], number, axis=2),
    stop_state_BxM=stop_state_BxC,
  )
  return _Candidates(sequences, sum_BxC=sum_BxC, parent_BxC=parent_BxC, ends_BxC=ends_BxC)


def _selected(
  early_stopping: bool | str,
  settings: _Settings,
  state: _State,
  candidates: _Candidates,
  cache: KVCache,
  fault: jax.Array,
) -> _State:
  """The next state: the best candidates that continue, and the best beams that have ended."""
  B, M = state.is_done_BxM.shape
  sequences, sum_BxC, parent_BxC, ends_BxC = candidates
  running_sum_BxC = jnp.where(ends_BxC, sum_BxC + _OUT, sum_BxC)
  running_score_BxM, next_BxM = jax.lax.top_k(running_sum_BxC, M)
  parent_BM = (_take(parent_BxC, next_BxM) + M * jnp.arange(B)[:, None]).reshape(B * M)

  # Candidates that end, together with the beams that ended before.
  just_done_BxC = ends_BxC & (jnp.arange(ends_BxC.shape[1]) < M)[None]
  length = (state.end + 1 - settings.prompt_width).astype(jnp.float32)
  final_BxC = sum_BxC / length**settings.length_penalty
  full_Bx1 = state.is_done_BxM.all(-1, keepdims=True) & (early_stopping is True)
  final_BxC += jnp.where(full_Bx1, _OUT, 0.0)
  final_BxC += jnp.where(state.improvable_B[:, None], 0.0, _OUT)
  final_BxC += jnp.where(just_done_BxC, 0.0, _OUT)
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  done_score_BxM, best_BxM = jax.lax.top_k(join(state.done_score_BxM, final_BxC), M)
  is_done_BxM = _take(join(state.is_done_BxM, just_done_BxC), best_BxM)

  # Whether the best running beam may still beat the worst finished one.
  at_most = settings.last - settings.prompt_width
  never = (early_stopping == "never") & (settings.length_penalty > 0)
  hopeful_length = jnp.where(never, at_most.astype(jnp.float32), length)
  best_B = running_score_BxM[:, 0] / hopeful_length**settings.length_penalty
  worst_BxM = jnp.where(is_done_BxM, done_score_BxM.min(1, keepdims=True), _OUT)
  return _State(
    end=state.end + 1,
    running=_take(sequences, next_BxM),
    running_score_BxM=running_score_BxM,
    done=_take(jax.tree.map(join, state.done, sequences), best_BxM),
    done_score_BxM=done_score_BxM,
    is_done_BxM=is_done_BxM,
    improvable_B=state.improvable_B & (best_B[:, None] > worst_BxM).any(-1),
    stuck=ends_BxC.all(),
    fault=fault,
    cache=kv_cache.reorder(cache, parent_BM),
  )


def _take(tree, index_BxC: jax.Array):
  """Sequences by their number, of each array of a tree."""
  pick = jax.vmap(lambda leaf, index: leaf[index])
  return jax.tree.map(lambda leaf: pick(leaf, index_BxC), tree)
