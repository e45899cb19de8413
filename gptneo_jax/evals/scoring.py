"""Log-probabilities of given tokens, from texts of any lengths, by few programs.

Texts are packed into rows, one behind another, as documents are in training: attention stays
within each, and positions begin anew. So little is padding, whatever the lengths, and rows have few
widths. Hidden states are computed for whole rows, logits only at the places that are asked for, and
these are few: the last word, an answer.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import axes, data, steps
from gptneo_jax.model import heads
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways, constrain

_CHUNK = 64  # places whose logits exist at a time: 13 MB of float32 at 50257 ids
_LEAST_WIDTH = 256


class Asked(NamedTuple):
  """The last len(targets) of the inputs are to predict the targets."""

  inputs: tuple[int, ...]
  targets: tuple[int, ...]


class Answer(NamedTuple):
  """Of each target: logprob_K, float32, in nats; greedy_K: whether no other id was likelier."""

  logprob_K: np.ndarray
  greedy_K: np.ndarray


class Batch(NamedTuple):
  """rows: of each row, its texts; of each text, the indices of the questions that share it."""

  width: int
  rows: list[list[list[int]]]


def widths(limit: int) -> list[int]:
  """Of rows: 256, 384, 512, 768 and so on, up to the limit: 7 up to 2048."""
  sizes, width = [], _LEAST_WIDTH
  while width < limit:
    sizes += [width, width * 3 // 2]
    width *= 2
  return [size for size in sizes if size < limit] + [limit]


class Scorer:
  """Answers for a language model, so many rows at once.

  shapes: (rows, width) of the programs that were needed so far: those of `widths`, and for the last
  batch of a call one with fewer rows.
  """

  def __init__(self, lm: Any, batch_size: int):
    self._ways = batch_ways(lm.mesh)
    self._lm, self._rows = lm, batch_size + -batch_size % self._ways
    self._widths = widths(lm.config.max_position_embeddings)
    self._module = heads.build(lm.config)
    self.shapes: set[tuple[int, int]] = set()

  def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
    """(index, answer) of each, as they come: the longest first. Equal inputs are computed once.

    Inputs have at least as many ids as targets, and at most as many as the model has positions.
    """
    start = lambda batch: self._start(asked, batch)  # noqa: E731
    for batch, scores in data.one_ahead(start, self.batches(asked)):
      yield from _fetched(asked, batch, scores)

  def batches(self, asked: Sequence[Asked]) -> Iterator[Batch]:
    """Each row takes the longest text left that still fits, until none does."""
    left = _texts(asked)
    lengths = [len(asked[text[0]].inputs) for text in left]
    while left:
      width = next(width for width in self._widths if width >= lengths[-1])
      rows: list[list[list[int]]] = []
      while left and len(rows) < self._rows:
        rows.append([])
        room = width
        while place := bisect.bisect_right(lengths, room):
          room -= lengths.pop(place - 1)
          rows[-1].append(left.pop(place - 1))
      yield Batch(width, rows)

  def shape(self, batch: Batch) -> tuple[int, int]:
    """(rows, width) of the program for a batch: a last one that is not full is cut, in eighths."""
    step = math.lcm(max(self._rows // 8, 1), self._ways)
    return min(-(-len(batch.rows) // step) * step, self._rows), batch.width

  def _start(self, asked: Sequence[Asked], batch: Batch) -> tuple[jax.Array, jax.Array]:
    B, T = self.shape(batch)
    ids_BxT, positions_BxT, segments_BxT = (np.zeros((B, T), np.int32) for _ in range(3))
    place_N, target_N = np.zeros(B * T, np.int32), np.zeros(B * T, np.int32)
    n = 0
    for b, row in enumerate(batch.rows):
      end = 0
      for number, text in enumerate(row, 1):
        inputs = asked[text[0]].inputs
        start, end = end, end + len(inputs)
        ids_BxT[b, start:end], segments_BxT[b, start:end] = inputs, number
        positions_BxT[b, start:end] = np.arange(len(inputs))
        for i in text:
          k = len(asked[i].targets)
          place_N[n : n + k] = b * T + end - k + np.arange(k)
          target_N[n : n + k] = asked[i].targets
          n += k
    self.shapes.add((B, T))
    rows = {"ids_BxT": ids_BxT, "positions_BxT": positions_BxT, "segment_ids_BxT": segments_BxT}
    with jax.set_mesh(self._lm.mesh), exact_products(self._lm.config.dtype):
      rows = steps.place_batch(rows, self._lm.mesh, B)
      return _score(self._module, self._lm.params, rows, place_N, target_N, np.int32(n))


def _texts(asked: Sequence[Asked]) -> list[list[int]]:
  """Different inputs, the shortest first, each with the questions that share them.

  Together these ask for no more targets than there are inputs, so that the places of a row suffice:
  what is more is asked of the same inputs again.
  """
  texts: dict[tuple[int, ...], list[list[int]]] = {}
  room: dict[tuple[int, ...], int] = {}
  for i, question in enumerate(asked):
    if not question.targets:
      continue
    if room.get(question.inputs, 0) < len(question.targets):
      texts.setdefault(question.inputs, []).append([])
      room[question.inputs] = len(question.inputs)
    texts[question.inputs][-1].append(i)
    room[question.inputs] -= len(question.targets)
  return [
    text for inputs in sorted(texts, key=lambda ids: (len(ids), ids)) for text in texts[inputs]
  ]


def _fetched(
  asked: Sequence[Asked], batch: Batch, scores: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[int, Answer]]:
  logprob_N, greedy_N = (np.asarray(x) for x in scores)
  n = 0
  for i in (i for row in batch.rows for text in row for i in text):
    k = len(asked[i].targets)
    yield i, Answer(logprob_N[n : n + k], greedy_N[n : n + k])
    n += k


@functools.partial(jax.jit, static_argnames="module")
def _score(module, params, rows, place_N, target_N, count) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities, and whether each is the greedy choice, of `count` targets of N.

  place_N: where their logits are, counted through the batch row by row. As many chunks are
  computed as `count` asks for: the program is the same for any.
  """
  B, N = rows["ids_BxT"].shape[0], place_N.shape[0]
  per_row = -(-_CHUNK // B)
  C = B * per_row
  place_N, target_N = (jnp.pad(x, (0, -N % C)) for x in (place_N, target_N))
  hidden_BxTxD = module.apply({"params": params}, **rows)
  # Whole on every device: the places asked for may lie in any rows.
  hidden_NxD = constrain(hidden_BxTxD.reshape(N, -1), None, None)

  def visit(i, scores):
    place_C, target_C = (jax.lax.dynamic_slice(x, [i * C], [C]) for x in (place_N, target_N))
    x_BxRxD = constrain(
      hidden_NxD[place_C].reshape(B, per_row, -1), axes.BATCH, axes.LENGTH, axes.ACT_EMBED
    )
    logits_BxRxV = module.apply({"params": params}, x_BxRxD, method="unembed")
    target_BxRx1 = target_C.reshape(B, per_row, 1)
    of_target_BxRx1 = jnp.take_along_axis(logits_BxRxV, target_BxRx1, axis=-1)
    # As argmax does, of equals the first.
    ids_1x1xV = jnp.arange(logits_BxRxV.shape[-1])[None, None]
    better_BxRxV = (logits_BxRxV > of_target_BxRx1) | (
      (logits_BxRxV == of_target_BxRx1) & (ids_1x1xV < target_BxRx1)
    )
    found = (
      of_target_BxRx1[..., 0] - jax.nn.logsumexp(logits_BxRxV, axis=-1),
      ~better_BxRxV.any(-1),
    )
    return tuple(
      jax.lax.dynamic_update_slice(old, new.reshape(C), [i * C]) for old, new in zip(scores, found)
    )

  start = (jnp.zeros(place_N.shape), jnp.zeros(place_N.shape, bool))
  return jax.lax.fori_loop(0, -(-count // C), visit, start)
