"""Log-probabilities of given tokens after given contexts, with few compiled programs.

Texts of any lengths are packed into rows as documents are in training: attention stays within each
text, and positions start at 0 in each. So there is little padding, and rows have few widths. Hidden
states are computed for whole rows, but logits only where targets are scored, which is at few
positions: those of a last word, or of an answer.

In names: N targets, of a request or of a batch; M targets whose logits exist at a time; R of these
in each row of a B x R x V array.
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
from gptneo_jax.axes import round_up
from gptneo_jax.model import heads
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways, constrain

_CHUNK = 64  # targets whose logits exist at a time: 13 MB of float32 at 50257 ids
_LEAST_WIDTH = 256


class ScoringRequest(NamedTuple):
  """The outputs at the last len(targets) inputs predict the targets."""

  inputs: tuple[int, ...]
  targets: tuple[int, ...]


class TargetScores(NamedTuple):
  """logprob_N: float32, in nats; greedy_N: whether each target is the argmax of the logits."""

  logprob_N: np.ndarray
  greedy_N: np.ndarray


class PackedBatch(NamedTuple):
  """rows: the texts of each row; a text is the list of indices of the requests with its inputs."""

  width: int
  rows: list[list[list[int]]]


def row_widths(limit: int) -> list[int]:
  """256, 384, 512, 768 and so on up to the limit: 7 widths for 2048."""
  sizes, width = [], _LEAST_WIDTH
  while width < limit:
    sizes += [width, width * 3 // 2]
    width *= 2
  return [size for size in sizes if size < limit] + [limit]


class Scorer:
  """Scores requests with a language model, `batch_size` rows at a time.

  Attributes:
    shapes: the (rows, width) compiled so far. Widths are those of `row_widths`; the last batch of a
      call may have fewer rows.
  """

  def __init__(self, lm: Any, batch_size: int):
    self._ways = batch_ways(lm.mesh)
    self._lm, self._rows = lm, round_up(batch_size, self._ways)
    self._widths = row_widths(lm.config.max_position_embeddings)
    self._module = heads.build(lm.config)
    self.shapes: set[tuple[int, int]] = set()

  def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, TargetScores]]:
    """(index, scores) of each request that has targets, the longest inputs first.

    Equal inputs are computed once. A request has at least as many inputs as targets, and at most as
    many as the model has positions.
    """
    start = lambda batch: self._start(requests, batch)
    for batch, scores in data.one_ahead(start, self.pack(requests)):
      yield from _fetched(requests, batch, scores)

  def pack(self, requests: Sequence[ScoringRequest]) -> Iterator[PackedBatch]:
    """Fills rows one after another, each with the longest remaining text that fits, until none
    does."""
    left = _texts(requests)
    lengths = [len(requests[text[0]].inputs) for text in left]
    while left:
      width = next(width for width in self._widths if width >= lengths[-1])
      rows: list[list[list[int]]] = []
      while left and len(rows) < self._rows:
        rows.append([])
        room = width
        while end := bisect.bisect_right(lengths, room):
          room -= lengths.pop(end - 1)
          rows[-1].append(left.pop(end - 1))
      yield PackedBatch(width, rows)

  def shape(self, batch: PackedBatch) -> tuple[int, int]:
    """(rows, width) to compile for a batch; the rows of a batch that is not full are rounded up to
    eighths of a full one."""
    step = math.lcm(max(self._rows // 8, 1), self._ways)
    return min(round_up(len(batch.rows), step), self._rows), batch.width

  def _start(
    self, requests: Sequence[ScoringRequest], batch: PackedBatch
  ) -> tuple[jax.Array, jax.Array]:
    """Starts the computation of a batch's scores."""
    B, T = self.shape(batch)
    ids_BxT, positions_BxT, segments_BxT = (np.zeros((B, T), np.int32) for _ in range(3))
    index_N, target_N = np.zeros(B * T, np.int32), np.zeros(B * T, np.int32)
    n = 0
    for b, row in enumerate(batch.rows):
      end = 0
      for segment, text in enumerate(row, 1):
        inputs = requests[text[0]].inputs
        start, end = end, end + len(inputs)
        ids_BxT[b, start:end], segments_BxT[b, start:end] = inputs, segment
        positions_BxT[b, start:end] = np.arange(len(inputs))
        for i in text:
          k = len(requests[i].targets)
          index_N[n : n + k] = b * T + end - k + np.arange(k)
          target_N[n : n + k] = requests[i].targets
          n += k
    self.shapes.add((B, T))
    rows = {"ids_BxT": ids_BxT, "positions_BxT": positions_BxT, "segment_ids_BxT": segments_BxT}
    with jax.set_mesh(self._lm.mesh), exact_products(self._lm.config.dtype):
      rows = steps.place_batch(rows, self._lm.mesh, B)
      return _score(self._module, self._lm.params, rows, index_N, target_N, np.int32(n))


def _texts(requests: Sequence[ScoringRequest]) -> list[list[int]]:
  """Distinct inputs, the shortest first, each as the indices of the requests that have them.

  The requests of a text have at most as many targets together as it has inputs, so that B x T
  targets suffice for a batch; inputs with more targets occur several times.
  """
  texts: dict[tuple[int, ...], list[list[int]]] = {}
  room: dict[tuple[int, ...], int] = {}
  for i, request in enumerate(requests):
    if not request.targets:
      continue
    if room.get(request.inputs, 0) < len(request.targets):
      texts.setdefault(request.inputs, []).append([])
      room[request.inputs] = len(request.inputs)
    texts[request.inputs][-1].append(i)
    room[request.inputs] -= len(request.targets)
  return [
    text for inputs in sorted(texts, key=lambda ids: (len(ids), ids)) for text in texts[inputs]
  ]


def _fetched(
  requests: Sequence[ScoringRequest], batch: PackedBatch, scores: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[int, TargetScores]]:
  """Waits for a batch's scores; splits them by request."""
  logprob_N, greedy_N = (np.asarray(x) for x in scores)
  n = 0
  for i in (i for row in batch.rows for text in row for i in text):
    k = len(requests[i].targets)
    yield i, TargetScores(logprob_N=logprob_N[n : n + k], greedy_N=greedy_N[n : n + k])
    n += k


@functools.partial(jax.jit, static_argnames="module")
def _score(module, params, rows, index_N, target_N, count) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of the first `count` of N targets, and whether each is the greedy choice.

  index_N: where each is predicted, in the batch flattened to B * T. Only as many chunks are
  computed as `count` needs, by the same program for every count.
  """
  B, N = rows["ids_BxT"].shape[0], index_N.shape[0]
  R = -(-_CHUNK // B)
  M = B * R
  index_N, target_N = (jnp.pad(x, (0, -N % M)) for x in (index_N, target_N))
  hidden_BxTxD = module.apply({"params": params}, **rows)
  # Replicated on every device, as the targets may be predicted in any rows.
  hidden_NxD = constrain(hidden_BxTxD.reshape(N, -1), None, None)

  def score_chunk(i, scores):
    index_M, target_M = (jax.lax.dynamic_slice(x, [i * M], [M]) for x in (index_N, target_N))
    x_BxRxD = constrain(
      hidden_NxD[index_M].reshape(B, R, -1), axes.BATCH, axes.LENGTH, axes.ACT_EMBED
    )
    logits_BxRxV = module.apply({"params": params}, x_BxRxD, method="unembed")
    target_BxRx1 = target_M.reshape(B, R, 1)
    of_target_BxRx1 = jnp.take_along_axis(logits_BxRxV, target_BxRx1, axis=-1)
    # As argmax does, the lower id is preferred among equal logits.
    ids_1x1xV = jnp.arange(logits_BxRxV.shape[-1])[None, None]
    better_BxRxV = (logits_BxRxV > of_target_BxRx1) | (
      (logits_BxRxV == of_target_BxRx1) & (ids_1x1xV < target_BxRx1)
    )
    found = (
      of_target_BxRx1[..., 0] - jax.nn.logsumexp(logits_BxRxV, axis=-1),
      ~better_BxRxV.any(-1),
    )
    return tuple(
      jax.lax.dynamic_update_slice(old, new.reshape(M), [i * M]) for old, new in zip(scores, found)
    )

  start = (jnp.zeros(index_N.shape), jnp.zeros(index_N.shape, bool))
  return jax.lax.fori_loop(0, -(-count // M), score_chunk, start)
