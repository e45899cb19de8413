"""Continuous batching: requests of one row each share a few slots, and come and go at any time.

A request waits for a free slot, has its prompt read in pieces between the steps of the others, and
leaves its slot at its end, to the next one at once. What it generates does not depend on what else
is there: its ids are those of `decode.run` with the same request.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptneo_jax.config import ModelConfig
from gptneo_jax.generation import decode, sampling
from gptneo_jax.generation.decode import GenerationRequest
from gptneo_jax.generation.kv_cache import KVCache
from gptneo_jax.generation.prefixes import Prefixes
from gptneo_jax.generation.prompt_reader import PromptReader
from gptneo_jax.generation.slots import Choice, Chosen, Slots, row_columns, slot_columns, slot_count
from gptneo_jax.generation.token_logprobs import TokenLogprobs

_PROMPT_TOKENS = 512  # of prompts that are read between two steps
_CALM_STEPS = 8  # that fewer slots would have been enough for before there are fewer


class Wanted(NamedTuple):
  """What a request wants beside its new tokens.

  logprobs: of these. prompt_logprobs: of the tokens of its prompt. kept: that its cache is kept for
  prompts that begin with it.
  """

  logprobs: bool = False
  prompt_logprobs: bool = False
  kept: bool = False


_NOTHING_MORE = Wanted()


@dataclasses.dataclass(eq=False)
class Row:
  """A request in progress.

  new: the ids generated so far, the end of text included.
  ended: '' while it goes on; then 'eos', 'stop_string', 'length', 'cancelled' or 'fault'.
  fault: decode.BAD_LOGITS or BAD_SCORES of a row that ended by a fault.
  logprobs: how each of `new` is predicted. prompt_logprobs: as PromptReader.logprobs.
  reused: tokens of the prompt that were not read, since a cache of them had been kept.
  steps: how many have been started.
  """

  request: GenerationRequest
  prompt: list[int]
  key_N: np.ndarray  # data of its random key
  stop_state: int
  wanted: Wanted
  new: list[int] = dataclasses.field(default_factory=list)
  ended: str = ""
  fault: int = 0
  logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
  prompt_logprobs: list[tuple[TokenLogprobs, int]] = dataclasses.field(default_factory=list)
  reused: int = 0
  slot: int = -1
  steps: int = 0

  @property
  def column(self) -> int:
    """The column of the token that the next step runs: after the prompt, of the last of `new`."""
    return len(self.prompt) - 1 + self.steps

  @property
  def all_started(self) -> bool:
    return self.steps == self.request.new_tokens


class _Step(NamedTuple):
  """A step that has been started: what it chooses, and for which rows, with their slots."""

  chosen: Chosen
  logprobs: TokenLogprobs | None
  rows: list[tuple[Row, int]]


class ContinuousBatch:
  """Decodes requests, at most `slots` at once. One thread at a time may call it.

  kept_bytes: of caches that are kept for prompts that begin with them (`Wanted.kept`).

  The device is never waited for before it has its next work: what a step chose is looked at when
  the next one has been started, so a row may run one step more than it needs, which is dropped.
  """

  def __init__(self, config: ModelConfig, unstacked_params: Any, slots: int, kept_bytes: int = 0):
    self._config, self._most = config, slots
    self._slots = Slots(config, unstacked_params, slots)
    self._waiting: collections.deque[Row] = collections.deque()
    self._reading: tuple[Row, PromptReader] | None = None
    self._rows: list[Row] = []  # in slots, in the order of their coming
    self._started: collections.deque[_Step] = collections.deque()
    self._choices: tuple[list[Row], list[Choice]] = ([], [])  # and the rows that they are for
    self.prefixes = Prefixes(kept_bytes)
    self._calm = 0  # steps since there were as many rows as slots

  @property
  def idle(self) -> bool:
    """Whether there is nothing to do."""
    return not (self._waiting or self._reading or self._rows or self._started)

  def warm_up(self) -> Iterator[float]:
    """Compiles all that requests with common options need; yields the share that is done.

    What small requests need comes first. Between two shares the batch may be used, but is to be
    idle when the next one is asked for. The buffers are once as large as they will ever be, so that
    missing memory is missed here.
    """
    slots, positions = self._slots, self._config.max_position_embeddings
    row_sizes = sorted({min(row_columns(n, positions), positions) for n in range(1, positions)})
    chunks = [
      (size, chunk) for size in row_sizes for chunk in decode.CHUNKS[::-1]
      if chunk <= row_columns(size, positions)
    ]  # fmt: skip
    parts = len(chunks) + len(slots.sizes)
    rows = {}
    for done, (size, chunk) in enumerate(chunks):
      yield done / parts
      row, ids_1xT = slots.empty_row(size), np.zeros((1, chunk), np.int32)
      row, _ = slots.read_and_score(row, ids_1xT, ids_1xT[0], 0, chunk)
      rows[size] = slots.read(row, ids_1xT, 0, chunk)
    for row in rows.values():
      for size in row_sizes:
        slots.row_like(row, size)
    for done, (count, columns) in enumerate(slots.sizes, len(chunks)):
      yield done / parts
      slots.arrange([], count, columns)
      slots.compile_neighbours()
      for size, row in rows.items():
        slots.put(0, [0], row)
        slots.row_of(0, size)
      zeros_B = np.zeros(count, np.int32)
      choices = _common_choices(count, self._config.vocab_size)
      jax.block_until_ready(slots.step(zeros_B, zeros_B, choices, True))
    slots.arrange([], *slots.sizes[0])
    yield 1.0

  def add(self, request: GenerationRequest, wanted: Wanted = _NOTHING_MORE) -> Row:
    """Queues a request of one row, without padding on the left; its new_tokens may be 0."""
    pipeline = sampling.common_form(request.pipeline, self._config.vocab_size)
    stop_state = 0 if request.stop_state_B is None else int(request.stop_state_B[0])
    row = Row(
      request._replace(pipeline=pipeline),
      prompt=request.ids_BxW[0].tolist(),
      key_N=np.asarray(jax.random.key_data(request.keys_B))[0],
      stop_state=stop_state,
      wanted=wanted,
    )
    self._waiting.append(row)
    return row

  def cancel(self, row: Row) -> None:
    """Ends a row, wherever it is; nothing happens to one that has ended."""
    if row in self._waiting:
      self._waiting.remove(row)
    if not row.ended:
      self._end(row, "cancelled")

  def advance(self) -> list[Row]:
    """Reads some of the prompts, starts a step, and takes what the one before chose.

    Returns the rows that have a new token or have ended.
    """
    ended = self._read_prompts()
    rows = [row for row in self._rows if not row.all_started]
    if rows:
      self._start(rows)
    if len(self._started) > bool(rows):
      return ended + self._take(self._started.popleft())
    return ended

  def _read_prompts(self) -> list[Row]:
    """Reads prompts for free slots, so many tokens that those who generate hardly wait.

    Returns the rows that end with their prompt.
    """
    left, ended = _PROMPT_TOKENS, []
    while left > 0 and (self._reading or (self._waiting and len(self._rows) < self._most)):
      if self._reading is None:
        row = self._waiting.popleft()
        self._reading = row, self._reader(row)
      row, reader = self._reading
      if not reader.finished:
        left -= reader.read()
      if reader.finished:
        self._reading = None
        row.prompt_logprobs = reader.logprobs
        if row.wanted.kept:
          self.prefixes.keep(row.prompt[:-1], reader.cache)
        if row.request.new_tokens:
          self._put(row, reader.cache)
        else:
          self._end(row, "length")
          ended.append(row)
    return ended

  def _reader(self, row: Row) -> PromptReader:
    """Reads a row's prompt, from the end of the longest beginning of it that has been kept."""
    scored, kept = row.wanted.prompt_logprobs, None
    if not scored:
      row.reused, kept = self.prefixes.longest(row.prompt[:-1])
    return PromptReader(self._slots, row.prompt, scored=scored, kept=kept, kept_tokens=row.reused)

  def _put(self, row: Row, cache: KVCache) -> None:
    self._arrange(row)
    used = {other.slot for other in self._rows}
    row.slot = next(slot for slot in range(self._slots.count) if slot not in used)
    self._slots.put(row.slot, row.prompt, cache)
    self._rows.append(row)

  def _arrange(self, *coming: Row) -> None:
    """Makes the slots fit the rows that are in them and those that come."""
    rows, positions = [*self._rows, *coming], self._config.max_position_embeddings
    now = slot_columns(max(row.column + 1 for row in rows), positions)
    later = slot_columns(max(len(row.prompt) + row.request.new_tokens for row in rows), positions)
    columns = min(max(self._slots.columns, now), later)
    count = slot_count(len(rows), self._most)
    # Moving them is not worth it for the next row that comes.
    self._calm = 0 if self._waiting or count >= self._slots.count else self._calm + 1
    if count < self._slots.count and self._calm < _CALM_STEPS:
      count = self._slots.count
    if (count, columns) != (self._slots.count, self._slots.columns):
      self._slots.arrange([row.slot for row in self._rows], count, columns)
      for slot, row in enumerate(self._rows):
        row.slot = slot
      self._choices = ([], [])

  def _start(self, rows: list[Row]) -> None:
    self._arrange()
    count = self._slots.count
    column_B, width_B = np.zeros(count, np.int32), np.zeros(count, np.int32)
    for row in self._rows:
      column_B[row.slot], width_B[row.slot] = row.column, len(row.prompt)
    if self._choices[0] != rows:
      self._choices = rows, _choices(rows, count)
    scored = any(row.wanted.logprobs for row in rows)
    made = self._slots.step(column_B, width_B, self._choices[1], scored)
    self._started.append(_Step(*made, [(row, row.slot) for row in rows]))
    for row in rows:
      row.steps += 1

  def _take(self, step: _Step) -> list[Row]:
    token_B, fault_B = np.asarray(step.chosen.token_B), np.asarray(step.chosen.fault_B)
    going = [(row, slot) for row, slot in step.rows if not row.ended]
    logprobs = jax.tree.map(np.asarray, step.logprobs)
    for row, slot in going:
      if row.wanted.logprobs:
        row.logprobs.append(TokenLogprobs(*(x[slot] for x in logprobs)))
      ended = _advanced(row, int(token_B[slot]), int(fault_B[slot]))
      if ended:
        self._end(row, ended)
    return [row for row, _ in going]

  def _end(self, row: Row, ended: str) -> None:
    row.ended = ended
    if self._reading is not None and row is self._reading[0]:
      self._reading = None
    if row in self._rows:
      self._rows.remove(row)
      if row.wanted.kept and ended in ("eos", "stop_string", "length"):
        ids = [*row.prompt, *row.new[:-1]]  # the last one may not have been run
        self.prefixes.keep(ids, self._slots.row_of(row.slot, len(ids)))


def _advanced(row: Row, token: int, fault: int) -> str:
  """Gives a row its next token; returns why it ends with it, or ''."""
  row.fault = fault
  if fault:
    return "fault"
  row.new.append(token)
  stops = row.request.stops
  stopped = False
  if stops is not None:
    stopped = bool(stops.hit_QxV[row.stop_state, token])
    row.stop_state = int(stops.next_QxV[row.stop_state, token])
  if token in row.request.eos:
    return "eos"
  if stopped:
    return "stop_string"
  return "length" if len(row.new) == row.request.new_tokens else ""


def _choices(rows: list[Row], count: int) -> list[Choice]:
  """The choices of a step: of rows that one program serves, together."""
  together: dict[Any, list[Row]] = collections.defaultdict(list)
  for row in rows:
    (processors, values), sample = row.request.pipeline, row.request.sample
    leaves, tree = jax.tree.flatten(values)
    shapes = tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves)
    together[processors, sample, tree, shapes].append(row)
  return [
    _choice(processors, sample, members, count)
    for (processors, sample, *_), members in together.items()
  ]


def _choice(
  processors: tuple[sampling.Processor, ...], sample: bool, members: list[Row], count: int
) -> Choice:
  of_slot = [members[0]] * count  # the slots of others get values of the right shapes
  for row in members:
    of_slot[row.slot] = row
  return Choice(
    processors,
    sample,
    member_B=np.isin(np.arange(count), [row.slot for row in members]),
    keys_BxN=np.stack([row.key_N for row in of_slot]),
    values=jax.tree.map(
      lambda *leaves: np.stack(leaves), *(row.request.pipeline.values for row in of_slot)
    ),
  )


def _common_choices(count: int, vocab_size: int) -> list[Choice]:
  """One for each common form of processors, of all slots."""
  stacked = lambda leaf: np.stack([leaf] * count)
  everyone_B = np.ones(count, bool)
  key_N = np.asarray(jax.random.key_data(jax.random.key(0)))
  return [
    Choice(form.processors, sample, everyone_B, stacked(key_N), jax.tree.map(stacked, form.values))
    for form, sample in sampling.common_forms(vocab_size)
  ]


def default_slots(mesh: Mesh) -> int:
  """As many rows as a step takes without becoming much slower than one of a few rows.

  A CPU is soon bounded by its arithmetic; an accelerator waits for its memory with many more rows.
  """
  return 16 if mesh.devices.flat[0].platform == "cpu" else 64


def run(
  config: ModelConfig, unstacked_params: Any, requests: list[GenerationRequest], slots: int
) -> decode.Continuation:
  """Generates all tokens of requests of one row each."""
  batch = ContinuousBatch(config, unstacked_params, slots)
  rows = [batch.add(request) for request in requests]
  while not batch.idle:
    batch.advance()
  count_B = np.array([len(row.new) for row in rows])
  ids_BxN = np.full((len(rows), max(count_B.max(), 1)), requests[0].pad, np.int32)
  for ids_N, row in zip(ids_BxN, rows):
    ids_N[: len(row.new)] = row.new
  fault = next((row.fault for row in rows if row.fault), 0)
  return decode.Continuation(ids_BxN, count_B, kept={}, fault=fault)
