"""Continuing prompts on the device: the prompt in one pass, then a compiled loop, token by token.

Rows of a batch end together: shorter prompts are padded on the left, and begin at a later column
(generation/kv_cache.py). The prompt but for its last token is read into the cache first; every step
of the loop then reads the last token of each row and chooses the next. Buffers come in few sizes,
and numbers such as a temperature are arguments, so that a new prompt rarely compiles anything.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.generation import kv_cache as caches
from gptneo_jax.generation import sampling, unstacked
from gptneo_jax.generation.cached_forward import extend, unembed
from gptneo_jax.generation.sampling import History, Plan
from gptneo_jax.generation.stop_strings import StopTable
from gptneo_jax.sharding import constrain

_CHUNKS = (512, 64)  # tokens of a prompt read at once: of each length as many as fit
# What may be wrong with a step: 0 is nothing.
BAD_LOGITS, BAD_SCORES, BAD_GUESSES = 1, 2, 3
_TOKENS_AT_ONCE = 8192  # of all rows: bounds the memory of their attention scores


class Task(NamedTuple):
  """What is to be made of a batch of prompts.

  ids_BxW: the prompts, padded on the left; row b begins at start_B[b].
  new_tokens: at most so many. eos: ids that end a row. pad: what stands behind an end.
  keys_B: for drawing, one key of each row. stops: of the stop strings, with the state of each row
    behind its prompt.
  negative: as many rows more (ids, start) that guidance leads away from.
  outputs: of 'scores', 'logits', 'logprobs' what is to be kept.
  """

  ids_BxW: np.ndarray
  start_B: np.ndarray
  new_tokens: int
  plan: Plan
  keys_B: Any
  sample: bool = False
  eos: tuple[int, ...] = ()
  pad: int = 0
  stops: StopTable | None = None
  stop_state_B: np.ndarray | None = None
  negative: tuple[np.ndarray, np.ndarray] | None = None
  outputs: frozenset[str] = frozenset()

  @property
  def width(self) -> int:
    return self.ids_BxW.shape[1]


class Settings(NamedTuple):
  """What stays the same from step to step, and may differ from call to call without compiling."""

  start_R: jax.Array  # R rows: those of the batch, then those of the negative prompts
  prompt_width: jax.Array
  eos_E: jax.Array
  pad: jax.Array
  keys_B: jax.Array
  values: dict[str, Any]
  stops: StopTable | None


class State(NamedTuple):
  """Where the loop is. Kept outputs have one entry for each new token, in an axis of S."""

  ids_RxS: jax.Array
  end: jax.Array  # columns filled
  done_B: jax.Array
  count_B: jax.Array  # new tokens of each row, its end of text included
  stop_B: jax.Array  # state of the stop strings
  kept: dict[str, jax.Array]  # logprobs S x B, scores and logits S x B x V
  fault: jax.Array  # of the last step; the loop ends with one
  cache: caches.Cache


class Continuation(NamedTuple):
  """New ids, B x N, padded behind count_B; and what was asked to be kept: B x N, or N x B x V.

  fault: 0, or why the ids mean nothing: BAD_LOGITS, BAD_SCORES or BAD_GUESSES.
  """

  ids_BxN: np.ndarray
  count_B: np.ndarray
  kept: dict[str, np.ndarray]
  fault: int = 0


class Stream:
  """A task on its way: `advance` makes tokens, `read` shows those made so far."""

  def __init__(self, config: ModelConfig, layered: Any, task: Task):
    self._config, self._layered, self.task = config, layered, task
    self._settings, self._state = _begin(config, layered, task)
    self._end = task.width

  @property
  def finished(self) -> bool:
    return (
      self._end == self.task.width + self.task.new_tokens
      or bool(np.asarray(self._state.done_B).all())
      or bool(self._state.fault)
    )

  def advance(self, tokens: int | None = None) -> None:
    """Up to so many tokens more; None: as many as there may be."""
    last = self.task.width + self.task.new_tokens
    until = last if tokens is None else min(self._end + tokens, last)
    self._state = _advance(
      self._config, self.task.plan.stages, self.task.sample, self._layered, self._settings,
      self._state, np.int32(until),
    )  # fmt: skip
    self._end = int(self._state.end)

  def read(self) -> Continuation:
    width, end = self.task.width, self._end
    B = len(self.task.ids_BxW)
    new = end - width
    kept = {name: np.asarray(x)[:new] for name, x in self._state.kept.items()}
    if "logprobs" in kept:
      kept["logprobs"] = kept["logprobs"].T
    return Continuation(
      np.asarray(self._state.ids_RxS)[:B, width:end], np.asarray(self._state.count_B), kept,
      int(self._state.fault),
    )  # fmt: skip


def run(config: ModelConfig, layered: Any, task: Task) -> Continuation:
  """The whole of a task."""
  stream = Stream(config, layered, task)
  stream.advance()
  return stream.read()


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids as one array, int32 B x W, and the column at which each begins. Raises UserError"""
  lengths_B = np.array([len(row) for row in rows])
  if lengths_B.min() == 0:
    raise UserError("the prompt is empty; begin with at least one token")
  ids_BxW = np.zeros((len(rows), lengths_B.max()), np.int32)
  for ids_W, row in zip(ids_BxW, rows):
    ids_W[len(ids_W) - len(row) :] = row
  return ids_BxW, (lengths_B.max() - lengths_B).astype(np.int32)


@functools.partial(jax.jit, static_argnames="config")
def prepare(config: ModelConfig, params: Any) -> dict[str, Any]:
  """The layered weights in the type of the computation: what a `Stream` runs on."""
  layered = unstacked.unstack(config, params)
  dtype = jnp.dtype(config.dtype)
  is_norm = lambda path: any(getattr(key, "key", "").startswith("ln_") for key in path)  # noqa: E731
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if is_norm(path) else x.astype(dtype), layered
  )


# --- the prompt -----------------------------------------------------------------------------------


def _begin(config: ModelConfig, layered: Any, task: Task) -> tuple[Settings, State]:
  ids_RxW, start_R = task.ids_BxW, task.start_B
  if task.negative is not None:
    ids_RxW = np.concatenate([ids_RxW, task.negative[0]])
    start_R = np.concatenate([start_R, task.negative[1]])
  B, columns = len(task.ids_BxW), task.width + task.new_tokens
  S = caches.capacity(columns, config.max_position_embeddings)
  cache = read_prompt(config, layered, ids_RxW, start_R, S)
  shapes = {"logprobs": (S, B), "scores": (S, B, config.vocab_size)}
  shapes["logits"] = shapes["scores"]
  ids_RxS = np.full((len(ids_RxW), S), task.pad, np.int32)
  ids_RxS[:, : task.width] = ids_RxW
  settings = make_settings(task)
  stop_state_B = np.zeros(B, np.int32) if task.stop_state_B is None else task.stop_state_B
  state = State(
    jnp.asarray(ids_RxS), jnp.int32(task.width), jnp.zeros(B, bool), jnp.zeros(B, jnp.int32),
    jnp.asarray(stop_state_B), {name: jnp.zeros(shapes[name]) for name in sorted(task.outputs)},
    jnp.int32(0), cache,
  )  # fmt: skip
  return settings, state


def make_settings(task: Task) -> Settings:
  start_R = task.start_B
  if task.negative is not None:
    start_R = np.concatenate([start_R, task.negative[1]])
  return Settings(
    jnp.asarray(start_R, jnp.int32), jnp.int32(task.width), jnp.array(task.eos or [-1], jnp.int32),
    jnp.int32(task.pad), task.keys_B, task.plan.values, task.stops,
  )  # fmt: skip


def read_prompt(
  config: ModelConfig, layered: Any, ids_RxW: np.ndarray, start_R: np.ndarray, columns: int
) -> caches.Cache:
  """A cache of so many columns that has read all but the last column of ids_RxW."""
  cache = _empty(config, len(ids_RxW), columns)
  column, unread = 0, ids_RxW.shape[1] - 1
  while unread:
    fits = [n for n in _CHUNKS if n <= unread and n * len(ids_RxW) <= _TOKENS_AT_ONCE]
    size = fits[0] if fits else _CHUNKS[-1]
    count = min(size, unread)
    chunk_RxT = np.zeros((len(ids_RxW), size), np.int32)
    chunk_RxT[:, :count] = ids_RxW[:, column : column + count]
    cache = _read(config, layered, cache, chunk_RxT, np.int32(column), np.int32(count), start_R)
    column, unread = column + count, unread - count
  return cache


@functools.partial(jax.jit, static_argnames=("config", "batch", "columns"))
def _empty(config, batch, columns):
  return caches.make_cache(config, batch, columns)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _read(config, layered, cache, ids_RxT, column, count, start_R):
  return extend(config, layered, cache, ids_RxT, column, count, start_R)[1]


# --- the loop -------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("config", "stages", "sample"), donate_argnames="state")
def _advance(config, stages, sample, layered, settings, state, until):
  """Steps until column `until` is reached, or every row is done."""

  def unfinished(state: State):
    return (state.end < until) & ~state.done_B.all() & (state.fault == 0)

  step = functools.partial(_step, config, stages, sample, layered, settings)
  state = jax.lax.while_loop(unfinished, step, state)
  # Whole on every device, so that each host can read it.
  whole = lambda x: constrain(x, *[None] * x.ndim)  # noqa: E731
  return jax.tree.map(whole, state._replace(cache=()))._replace(cache=state.cache)


def _step(config, stages, sample, layered, settings: Settings, state: State) -> State:
  """Reads the last column and fills the next."""
  B = state.done_B.shape[0]
  column = state.end - 1
  last_Rx1 = jax.lax.dynamic_slice_in_dim(state.ids_RxS, column, 1, axis=1)
  hidden_DxRx1, cache = extend(
    config, layered, state.cache, last_Rx1, column, jnp.int32(1), settings.start_R
  )
  logits_RxV = unembed(config, layered, hidden_DxRx1[:, :, 0])
  logits_BxV, unguided = logits_RxV[:B], logits_RxV[B:]
  history = History(state.ids_RxS[:B], settings.start_R[:B], state.end, settings.prompt_width)
  scores_BxV = sampling.apply(stages, settings.values, history, logits_BxV, unguided)
  alive_B = ~state.done_B
  bad_logits = not_finite(stages, logits_RxV) & jnp.tile(alive_B, len(logits_RxV) // B)
  fault = jnp.where((~jnp.isfinite(scores_BxV.max(-1)) & alive_B).any(), BAD_SCORES, 0)
  fault = jnp.where(bad_logits.any(), BAD_LOGITS, fault)
  number = state.end - settings.prompt_width
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(settings.keys_B, number)
  token_B = sampling.choose(keys_B, scores_BxV, sample)
  token_B = jnp.where(state.done_B, settings.pad, token_B)
  kept = dict(state.kept)
  for name, value in (("scores", scores_BxV), ("logits", logits_BxV)):
    if name in kept:
      kept[name] = kept[name].at[number].set(value)
  if "logprobs" in kept:
    log_BxV = jax.nn.log_softmax(scores_BxV)
    kept["logprobs"] = kept["logprobs"].at[number].set(log_BxV[jnp.arange(B), token_B])
  ends_B = (token_B[:, None] == settings.eos_E).any(-1)
  stop_B = state.stop_B
  if settings.stops is not None:
    hit_B, stop_B = settings.stops.step(stop_B, token_B)
    ends_B |= hit_B
  new_R = jnp.tile(token_B, state.ids_RxS.shape[0] // B)
  return State(
    jax.lax.dynamic_update_slice_in_dim(state.ids_RxS, new_R[:, None], state.end, axis=1),
    state.end + 1,
    state.done_B | ends_B,
    state.count_B + ~state.done_B,
    stop_B,
    kept,
    fault,
    cache,
  )


def not_finite(stages: Sequence[sampling.Stage], logits_NxV: jax.Array) -> jax.Array:
  """Which rows have NaN, or infinity for their largest logit, bool N; none if a stage mends it."""
  if any(stage.name == "remove_invalid_values" for stage in stages):
    return jnp.zeros(len(logits_NxV), bool)
  return ~jnp.isfinite(logits_NxV.max(-1))
