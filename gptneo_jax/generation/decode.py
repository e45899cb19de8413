"""Greedy search and sampling on the device: the prompt first, then a compiled loop over tokens.

Rows of a batch end together: shorter prompts are padded on the left (generation/kv_cache.py).
`prefill` runs the prompts, all but their last token, through the model and fills the cache; each
step of the loop then runs the last token of every row and chooses the next. Buffers have few sizes,
and numbers such as a temperature are arguments, so that a new prompt rarely compiles anything.

Letters of this module: W columns of the prompts · N new tokens · S the buffer's length · E ids that
end a row · R rows of the batch and of the negative prompts.
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
from gptneo_jax.generation import kv_cache, sampling
from gptneo_jax.generation.cached_forward import forward_with_cache, unembed
from gptneo_jax.generation.kv_cache import KVCache
from gptneo_jax.generation.sampling import History, LogitsPipeline, Processor
from gptneo_jax.generation.stop_strings import StopTable
from gptneo_jax.sharding import constrain

# Faults of a step, which end the loop; 0 is none.
BAD_LOGITS, BAD_SCORES, BAD_DRAFTS = 1, 2, 3
# Prompts run in chunks of these lengths, the largest first that fits and is within the limit of
# tokens of all rows together, which bounds the memory of attention scores.
CHUNKS = (512, 256, 64)
_CHUNK_TOKENS = 8192


class GenerationRequest(NamedTuple):
  """A batch of prompts and how to continue them, ready for the device.

  ids_BxW: the prompts, padded on the left by left_pad_B columns each.
  new_tokens: how many to generate at most.
  pipeline: turns logits into the scores that tokens are chosen by.
  keys_B: a random key for each row.
  sample: whether tokens are drawn; else the best is taken.
  eos: ids that end a row. pad: the id after an end.
  stops: the automaton of the stop strings; stop_state_B: its state after each prompt.
  negative: (ids_BxW, left_pad_B) of the negative prompts that guidance leads away from.
  outputs: which of 'scores', 'logits' and 'logprobs' to return.
  """

  ids_BxW: np.ndarray
  left_pad_B: np.ndarray
  new_tokens: int
  pipeline: LogitsPipeline
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
    """Columns of the prompts."""
    return self.ids_BxW.shape[1]

  @property
  def length(self) -> int:
    """Columns of prompts and new tokens at most."""
    return self.width + self.new_tokens


class Settings(NamedTuple):
  """Arrays that are the same in every step; other values of them do not compile again."""

  left_pad_R: jax.Array
  prompt_width: jax.Array
  eos_E: jax.Array
  pad: jax.Array
  keys_B: jax.Array
  values: dict[str, tuple]  # of the pipeline
  stops: StopTable | None


class State(NamedTuple):
  """What a step changes."""

  ids_RxS: jax.Array
  end: jax.Array  # filled columns
  done_B: jax.Array
  count_B: jax.Array  # new tokens of each row, the end of text included
  stop_state_B: jax.Array
  kept: dict[str, jax.Array]  # logprobs S x B, scores and logits S x B x V; new token n is entry n
  fault: jax.Array  # of the last step
  cache: KVCache


class Continuation(NamedTuple):
  """New tokens of each row.

  ids_BxN: padded after count_B tokens.
  kept: the requested outputs, 'logprobs' B x N, 'scores' and 'logits' N x B x V.
  fault: 0, or why the ids mean nothing: BAD_LOGITS, BAD_SCORES or BAD_DRAFTS.
  """

  ids_BxN: np.ndarray
  count_B: np.ndarray
  kept: dict[str, np.ndarray]
  fault: int = 0


class Decoding:
  """A request in progress: `advance` generates tokens, `read` returns those generated so far."""

  def __init__(self, config: ModelConfig, unstacked_params: Any, request: GenerationRequest):
    self._config, self._params, self._request = config, unstacked_params, request
    self._settings = make_settings(request)
    self._state = _prefilled(config, unstacked_params, request)
    self._end = request.width

  @property
  def finished(self) -> bool:
    return (
      self._end == self._request.length
      or bool(np.asarray(self._state.done_B).all())
      or bool(self._state.fault)
    )

  def advance(self, tokens: int | None = None) -> None:
    """Generates `tokens` more tokens in each row, or None for all that the request asks for."""
    last = self._request.length
    until = last if tokens is None else min(self._end + tokens, last)
    self._state = _advance(
      self._config, self._request.pipeline.processors, self._request.sample, self._params,
      self._settings, self._state, np.int32(until),
    )  # fmt: skip
    self._end = int(self._state.end)

  def read(self) -> Continuation:
    B, width = self._request.ids_BxW.shape
    kept = {name: np.asarray(x)[: self._end - width] for name, x in self._state.kept.items()}
    if "logprobs" in kept:
      kept["logprobs"] = kept["logprobs"].T
    return Continuation(
      ids_BxN=np.asarray(self._state.ids_RxS)[:B, width : self._end],
      count_B=np.asarray(self._state.count_B),
      kept=kept,
      fault=int(self._state.fault),
    )


def run(config: ModelConfig, unstacked_params: Any, request: GenerationRequest) -> Continuation:
  """Generates all tokens of a request."""
  decoding = Decoding(config, unstacked_params, request)
  decoding.advance()
  return decoding.read()


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids as one array, int32 B x W, and the columns of padding before each, int32 B.

  Raises UserError for an empty row.
  """
  lengths_B = np.array([len(row) for row in rows])
  if lengths_B.min() == 0:
    raise UserError("the prompt is empty; begin with at least one token")
  ids_BxW = np.zeros((len(rows), lengths_B.max()), np.int32)
  for ids_W, row in zip(ids_BxW, rows):
    ids_W[len(ids_W) - len(row) :] = row
  return ids_BxW, (lengths_B.max() - lengths_B).astype(np.int32)


# --- the prompt -----------------------------------------------------------------------------------


def make_settings(request: GenerationRequest) -> Settings:
  left_pad_R = request.left_pad_B
  if request.negative is not None:
    left_pad_R = np.concatenate([left_pad_R, request.negative[1]])
  return Settings(
    left_pad_R=jnp.asarray(left_pad_R, jnp.int32),
    prompt_width=jnp.int32(request.width),
    eos_E=jnp.array(request.eos or [-1], jnp.int32),
    pad=jnp.int32(request.pad),
    keys_B=request.keys_B,
    values=request.pipeline.values,
    stops=jax.tree.map(jnp.asarray, request.stops),
  )


def _prefilled(config: ModelConfig, unstacked_params: Any, request: GenerationRequest) -> State:
  """The state before the first new token."""
  ids_RxW, left_pad_R, B = request.ids_BxW, request.left_pad_B, len(request.ids_BxW)
  if request.negative is not None:
    ids_RxW = np.concatenate([ids_RxW, request.negative[0]])
    left_pad_R = np.concatenate([left_pad_R, request.negative[1]])
  S = kv_cache.bucketed_length(request.length, config.max_position_embeddings)
  ids_RxS = np.full((len(ids_RxW), S), request.pad, np.int32)
  ids_RxS[:, : request.width] = ids_RxW
  stop_state_B = request.stop_state_B
  shapes = {"logprobs": (S, B), "scores": (S, B, config.vocab_size)}
  shapes["logits"] = shapes["scores"]
  return State(
    ids_RxS=jnp.asarray(ids_RxS),
    end=jnp.int32(request.width),
    done_B=jnp.zeros(B, bool),
    count_B=jnp.zeros(B, jnp.int32),
    stop_state_B=jnp.asarray(np.zeros(B, np.int32) if stop_state_B is None else stop_state_B),
    kept={name: jnp.zeros(shapes[name]) for name in sorted(request.outputs)},
    fault=jnp.int32(0),
    cache=prefill(config, unstacked_params, ids_RxW, left_pad_R, S),
  )


def prefill(
  config: ModelConfig,
  unstacked_params: Any,
  ids_BxW: np.ndarray,
  left_pad_B: np.ndarray,
  length: int,
) -> KVCache:
  """A cache of `length` columns that holds all but the last column of ids_BxW."""
  cache = empty_cache(config, len(ids_BxW), length)
  column, end = 0, ids_BxW.shape[1] - 1
  while column < end:
    chunk_BxT, count = prompt_chunk(ids_BxW[:, column:end])
    cache = prefill_chunk(
      config, unstacked_params, cache, chunk_BxT, np.int32(column), np.int32(count), left_pad_B
    )
    column += count
  return cache


def prompt_chunk(ids_BxW: np.ndarray) -> tuple[np.ndarray, int]:
  """The first columns of ids, padded to one of few lengths, and how many of them are real."""
  B, W = ids_BxW.shape
  size = next((n for n in CHUNKS if n <= W and n * B <= _CHUNK_TOKENS), CHUNKS[-1])
  count = min(size, W)
  return np.pad(ids_BxW[:, :count], ((0, 0), (0, size - count))), count


@functools.partial(jax.jit, static_argnames=("config", "batch", "length"))
def empty_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
  return kv_cache.make_cache(config, batch, length)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill_chunk(config, unstacked_params, cache, ids_BxT, column, count, left_pad_B) -> KVCache:
  """The cache with `count` of T more columns of the prompts, from `column` on."""
  return forward_with_cache(config, unstacked_params, cache, ids_BxT, column, count, left_pad_B)[1]


# --- the loop -------------------------------------------------------------------------------------


@functools.partial(
  jax.jit, static_argnames=("config", "processors", "sample"), donate_argnames="state"
)
def _advance(config, processors, sample, unstacked_params, settings, state, until):
  """Steps until column `until` is reached, every row is done, or there is a fault."""

  def unfinished(state: State):
    return (state.end < until) & ~state.done_B.all() & (state.fault == 0)

  step = functools.partial(_step, config, processors, sample, unstacked_params, settings)
  state = jax.lax.while_loop(unfinished, step, state)
  # Replicated over the mesh, so that each host can read the results.
  replicated = lambda x: constrain(x, *[None] * x.ndim)
  return jax.tree.map(replicated, state._replace(cache=()))._replace(cache=state.cache)


def _step(config, processors, sample, unstacked_params, settings: Settings, state: State) -> State:
  """Runs the token in the last column of every row, and fills the next column."""
  B = state.done_B.shape[0]
  column = state.end - 1
  last_Rx1 = jax.lax.dynamic_slice_in_dim(state.ids_RxS, column, 1, axis=1)
  hidden_DxRx1, cache = forward_with_cache(
    config, unstacked_params, state.cache, last_Rx1, column, jnp.int32(1), settings.left_pad_R
  )
  logits_RxV = unembed(config, unstacked_params, hidden_DxRx1[:, :, 0])
  logits_BxV = logits_RxV[:B]
  history = History(
    ids_BxS=state.ids_RxS[:B],
    left_pad_B=settings.left_pad_R[:B],
    end=state.end,
    prompt_width=settings.prompt_width,
    negative_logits_BxV=logits_RxV[B:] if len(logits_RxV) > B else None,
  )
  scores_BxV = sampling.process_logits(processors, settings.values, history, logits_BxV)
  alive_B = ~state.done_B
  bad_logits_R = not_finite(processors, logits_RxV) & jnp.tile(alive_B, len(logits_RxV) // B)
  fault = jnp.where((~jnp.isfinite(scores_BxV.max(-1)) & alive_B).any(), BAD_SCORES, 0)
  fault = jnp.where(bad_logits_R.any(), BAD_LOGITS, fault)
  number = state.end - settings.prompt_width
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(settings.keys_B, number)
  token_B = sampling.sample_token(keys_B, scores_BxV, sample)
  token_B = jnp.where(state.done_B, settings.pad, token_B)
  kept = dict(state.kept)
  for name, value_BxV in (("scores", scores_BxV), ("logits", logits_BxV)):
    if name in kept:
      kept[name] = kept[name].at[number].set(value_BxV)
  if "logprobs" in kept:
    log_BxV = jax.nn.log_softmax(scores_BxV)
    kept["logprobs"] = kept["logprobs"].at[number].set(log_BxV[jnp.arange(B), token_B])
  ends_B = (token_B[:, None] == settings.eos_E[None]).any(-1)
  stop_state_B = state.stop_state_B
  if settings.stops is not None:
    hit_B, stop_state_B = settings.stops.step(stop_state_B, token_B)
    ends_B |= hit_B
  new_R = jnp.tile(token_B, state.ids_RxS.shape[0] // B)
  return State(
    ids_RxS=jax.lax.dynamic_update_slice_in_dim(state.ids_RxS, new_R[:, None], state.end, axis=1),
    end=state.end + 1,
    done_B=state.done_B | ends_B,
    count_B=state.count_B + ~state.done_B,
    stop_state_B=stop_state_B,
    kept=kept,
    fault=fault,
    cache=cache,
  )


def not_finite(processors: Sequence[Processor], logits_BxV: jax.Array) -> jax.Array:
  """Rows with a NaN, or whose largest logit is infinite, bool B; none if a processor repairs it."""
  if any(processor.name == "remove_invalid_values" for processor in processors):
    return jnp.zeros(len(logits_BxV), bool)
  return ~jnp.isfinite(logits_BxV.max(-1))
