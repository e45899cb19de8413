"""Beam search as transformers does it, as one compiled loop.

Of every prompt M beams run. At each step the best K continuations over all beams are taken, K being
enough for M that do not end; those among the first M that end are finished, and kept if they are
among the best M by sum of log-probabilities / length^length_penalty. Source: transformers'
GenerationMixin._beam_search.
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
from gptneo_jax.generation.decode import BAD_LOGITS, BAD_SCORES, Task, not_finite, read_prompt
from gptneo_jax.generation.sampling import History
from gptneo_jax.generation.stop_strings import StopTable

_OUT = -1e9  # score of what may not be chosen


class Beams(NamedTuple):
  """Settings of the search; `returned` of the M are given back."""

  M: int
  returned: int
  length_penalty: float
  early_stopping: bool | str


class BeamContinuation(NamedTuple):
  """The best first: new ids B·returned x N, padded behind count; sums divided by length^penalty.

  kept: 'logprobs' of the chosen tokens, B·returned x N.
  """

  ids_BxN: np.ndarray
  count_B: np.ndarray
  scores_B: np.ndarray
  kept: dict[str, np.ndarray]
  fault: int = 0


class _Settings(NamedTuple):
  start_N: jax.Array  # N = B · M rows
  prompt_width: jax.Array
  last: jax.Array  # columns at most
  eos_E: jax.Array
  keys_B: jax.Array
  values: dict[str, Any]
  stops: StopTable | None
  length_penalty: jax.Array


class _Sequences(NamedTuple):
  """Beams of any number, in an axis after B: ids, new tokens, their log-probabilities, state of
  stops."""

  ids_BxMxS: jax.Array
  length_BxM: jax.Array
  logprobs_BxMxS: jax.Array
  stop_BxM: jax.Array


class _State(NamedTuple):
  end: jax.Array
  running: _Sequences
  running_score_BxM: jax.Array
  done: _Sequences
  done_score_BxM: jax.Array
  is_done_BxM: jax.Array
  improvable_B: jax.Array
  stuck: jax.Array  # no beam can go on
  fault: jax.Array  # of the last step (generation/decode.py); the loop ends with one
  cache: caches.Cache


def run(config: ModelConfig, layered: Any, task: Task, beams: Beams) -> BeamContinuation:
  """Searches to the end. Of task.outputs only 'logprobs' is kept."""
  B, M, W = len(task.ids_BxW), beams.M, task.width
  S = caches.capacity(W + task.new_tokens, config.max_position_embeddings)
  cache = _repeat(read_prompt(config, layered, task.ids_BxW, task.start_B, S), M)
  settings = _Settings(
    jnp.repeat(jnp.asarray(task.start_B, jnp.int32), M), jnp.int32(W),
    jnp.int32(W + task.new_tokens), jnp.array(task.eos or [-1], jnp.int32), task.keys_B,
    task.plan.values, task.stops, jnp.float32(beams.length_penalty),
  )  # fmt: skip
  ids_BxMxS = np.full((B, M, S), task.pad, np.int32)
  ids_BxMxS[:, :, :W] = task.ids_BxW[:, None]
  stop_B = np.zeros(B, np.int32) if task.stop_state_B is None else task.stop_state_B

  def sequences():  # two of these are carried: each array is its own
    return _Sequences(
      jnp.asarray(ids_BxMxS), jnp.zeros((B, M), jnp.int32), jnp.zeros((B, M, S)),
      jnp.asarray(np.repeat(stop_B[:, None], M, 1)),
    )  # fmt: skip

  state = _State(
    jnp.int32(W), sequences(), jnp.full((B, M), _OUT).at[:, 0].set(0.0), sequences(),
    jnp.full((B, M), _OUT), jnp.zeros((B, M), bool), jnp.ones(B, bool), jnp.array(False),
    jnp.int32(0), cache,
  )  # fmt: skip
  eos = max(1, len(task.eos))
  done, scores, fault = _search(
    config, task.plan.stages, task.sample, M, max(2, 1 + eos) * M, beams.early_stopping, layered,
    settings, state,
  )  # fmt: skip
  R = beams.returned
  flat = lambda x: np.asarray(x)[:, :R].reshape(B * R, *x.shape[2:])  # noqa: E731
  count_B = flat(done.length_BxM)
  new = slice(W, W + int(count_B.max()))
  kept = {}
  if "logprobs" in task.outputs:
    kept["logprobs"] = flat(done.logprobs_BxMxS)[:, : count_B.max()]
  return BeamContinuation(flat(done.ids_BxMxS)[:, new], count_B, flat(scores), kept, int(fault))


@functools.partial(jax.jit, static_argnames="times")
def _repeat(cache, times):
  return caches.repeat(cache, times)


@functools.partial(
  jax.jit, static_argnames=("config", "stages", "sample", "M", "K", "early_stopping")
)
def _search(config, stages, sample, M, K, early_stopping, layered, settings, state):
  def unfinished(state: _State):
    everything_done = state.is_done_BxM.all() & (early_stopping is True)
    going_on = state.improvable_B.any() & ~everything_done & ~state.stuck
    return going_on & (state.fault == 0)

  def step(state: _State):
    return _step(config, stages, sample, M, K, early_stopping, layered, settings, state)

  state = jax.lax.while_loop(unfinished, step, state)
  return state.done, state.done_score_BxM, state.fault


def _take(tree, index_BxK: jax.Array):
  """Beams by their number, of each array of a tree."""
  pick = jax.vmap(lambda leaf, index: leaf[index])
  return jax.tree.map(lambda leaf: pick(leaf, index_BxK), tree)


def _step(
  config, stages, sample, M, K, early_stopping, layered, settings: _Settings, state: _State
) -> _State:
  B, _, S = state.running.ids_BxMxS.shape
  V, column = config.vocab_size, state.end - 1
  ids_NxS = state.running.ids_BxMxS.reshape(B * M, S)
  last_Nx1 = jax.lax.dynamic_slice_in_dim(ids_NxS, column, 1, axis=1)
  hidden_DxNx1, cache = extend(
    config, layered, state.cache, last_Nx1, column, jnp.int32(1), settings.start_N
  )
  logits_NxV = unembed(config, layered, hidden_DxNx1[:, :, 0])
  log_NxV = jax.nn.log_softmax(logits_NxV)
  history = History(ids_NxS, settings.start_N, state.end, settings.prompt_width)
  log_NxV = sampling.apply(stages, settings.values, history, log_NxV)
  token_BxMxV = log_NxV.reshape(B, M, V)
  sum_BxMV = (token_BxMxV + state.running_score_BxM[:, :, None]).reshape(B, M * V)
  best_B = sum_BxMV.max(-1)  # NaN if any is
  fault = jnp.where((jnp.isfinite(best_B) | ~state.improvable_B).all(), 0, BAD_SCORES)
  fault = jnp.where(not_finite(stages, logits_NxV).any(), BAD_LOGITS, fault)

  # The best K continuations, or K drawn without replacement.
  number = state.end - settings.prompt_width
  if sample:
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(settings.keys_B, number)
    noise_BxMV = jax.vmap(lambda key: jax.random.gumbel(key, (M * V,)))(keys_B)
    _, flat_BxK = jax.lax.top_k(sum_BxMV + noise_BxMV, K)
    sum_BxK = jnp.take_along_axis(sum_BxMV, flat_BxK, 1)
    order_BxK = jnp.argsort(-sum_BxK, axis=1)
    sum_BxK, flat_BxK = (jnp.take_along_axis(x, order_BxK, 1) for x in (sum_BxK, flat_BxK))
  else:
    sum_BxK, flat_BxK = jax.lax.top_k(sum_BxMV, K)
  parent_BxK, new_BxK = flat_BxK // V, (flat_BxK % V).astype(jnp.int32)
  logprob_BxK = jnp.take_along_axis(token_BxMxV.reshape(B, M * V), flat_BxK, 1)
  top = _take(state.running, parent_BxK)
  ends_BxK = (new_BxK[..., None] == settings.eos_E).any(-1) | (state.end + 1 >= settings.last)
  stop_BxK = top.stop_BxM
  if settings.stops is not None:
    hit_BxK, stop_BxK = settings.stops.step(stop_BxK, new_BxK)
    ends_BxK |= hit_BxK
  top = _Sequences(
    jax.lax.dynamic_update_slice_in_dim(top.ids_BxMxS, new_BxK[..., None], state.end, axis=2),
    jnp.full_like(top.length_BxM, number + 1),
    jax.lax.dynamic_update_slice_in_dim(top.logprobs_BxMxS, logprob_BxK[..., None], number, 2),
    stop_BxK,
  )

  # Beams that go on.
  running_sum_BxK = jnp.where(ends_BxK, sum_BxK + _OUT, sum_BxK)
  running_score_BxM, next_BxM = jax.lax.top_k(running_sum_BxK, M)
  running = _take(top, next_BxM)
  parent_N = (_take(parent_BxK, next_BxM) + M * jnp.arange(B)[:, None]).reshape(B * M)

  # Beams that have ended, with those that had before.
  just_done_BxK = ends_BxK & (jnp.arange(K) < M)
  length = (number + 1).astype(jnp.float32)
  final_BxK = sum_BxK / length**settings.length_penalty
  full_Bx1 = state.is_done_BxM.all(-1, keepdims=True) & (early_stopping is True)
  final_BxK += jnp.where(full_Bx1, _OUT, 0.0)
  final_BxK += jnp.where(state.improvable_B[:, None], 0.0, _OUT)
  final_BxK += jnp.where(just_done_BxK, 0.0, _OUT)
  join = lambda a, b: jnp.concatenate([a, b], axis=1)  # noqa: E731
  done_score_BxM, best_BxM = jax.lax.top_k(join(state.done_score_BxM, final_BxK), M)
  done = _take(jax.tree.map(join, state.done, top), best_BxM)
  is_done_BxM = _take(join(state.is_done_BxM, just_done_BxK), best_BxM)

  # Whether the best running beam may still beat the worst finished one.
  at_most = settings.last - settings.prompt_width
  never = (early_stopping == "never") & (settings.length_penalty > 0)
  hopeful_length = jnp.where(never, at_most.astype(jnp.float32), length)
  best_B = running_score_BxM[:, 0] / hopeful_length**settings.length_penalty
  worst_BxM = jnp.where(is_done_BxM, done_score_BxM.min(1, keepdims=True), _OUT)
  improvable_B = state.improvable_B & (best_B[:, None] > worst_BxM).any(-1)
  return _State(
    state.end + 1, running, running_score_BxM, done, done_score_BxM, is_done_BxM, improvable_B,
    ends_BxK.all(), fault, caches.reorder(cache, parent_N),
  )  # fmt: skip
