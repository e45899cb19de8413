"""Log-probabilities of given tokens, from rows of any lengths, by few programs.

Hidden states are computed for whole rows, logits only at the places that are asked for, and these
are few: the last word, an answer. Rows are padded on the right, which a causal model does not see.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import axes, heads, steps
from gptneo_jax.sharding import constrain

_CHUNK = 64  # places whose logits exist at a time: 13 MB of float32 at 50257 ids
_STEP = 16  # widths are multiples of it
_MOST_PROGRAMS = 12  # compiled for the requests of one call
_COMPILING = 128  # columns of a batch that must be saved: programs are kept for later runs


class Asked(NamedTuple):
  """The last len(targets) of the inputs are to predict the targets."""

  inputs: tuple[int, ...]
  targets: tuple[int, ...]


class Answer(NamedTuple):
  """Of each target: logprob_K, float32, in nats; greedy_K: whether no other id was likelier."""

  logprob_K: np.ndarray
  greedy_K: np.ndarray


def choose_widths(needed: Sequence[int], there: Collection[int]) -> list[int]:
  """Widths to pad batches to that need at least so many columns, in ascending order.

  there: widths that are compiled already. Another one is added where it saves enough columns, over
  all batches, to be worth compiling; 12 at most.
  """
  batches = collections.Counter(needed)
  chosen = {width for width in there if width <= max(batches)}
  chosen.add(min((width for width in there if width >= max(batches)), default=max(batches)))
  old = set(there)

  def saved(width: int) -> int:
    above = min(w for w in chosen if w >= width)
    below = max((w for w in chosen if w < width), default=0)
    return (above - width) * sum(n for w, n in batches.items() if below < w <= width)

  while len(chosen - old) < _MOST_PROGRAMS:
    best = max(batches, key=saved)
    if saved(best) <= _COMPILING:
      break
    chosen.add(best)
  return sorted(chosen)


class Scorer:
  """Answers for a language model, so many rows at once.

  shapes: (rows, width) of the programs that were needed so far.
  """

  def __init__(self, lm: Any, batch_size: int):
    ways = lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    self._lm, self._rows = lm, batch_size + -batch_size % ways
    self._module = heads.build(lm.config)
    self.shapes: set[tuple[int, int]] = set()

  def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
    """(index, answer) of each, as they come: the longest first. Equal inputs share a row.

    Inputs have at least as many ids as targets, and at most as many as the model has positions.
    """
    batches = list(self._batches(asked))
    if not batches:
      return
    needed = [self._width(len(asked[batch[0][0]].inputs)) for batch in batches]
    widths = choose_widths(needed, {T for _, T in self.shapes})
    pending = None
    for batch, least in zip(batches, needed):
      T = next(width for width in widths if width >= least)
      started = batch, self._start(asked, batch, T)
      if pending is not None:  # is fetched while the device is at the next
        yield from _fetched(asked, *pending)
      pending = started
    assert pending is not None
    yield from _fetched(asked, *pending)

  def _batches(self, asked: Sequence[Asked]) -> Iterator[list[list[int]]]:
    """Rows of a batch, each the indices of those that share it."""
    sharing: dict[tuple[int, ...], list[int]] = {}
    for i, question in enumerate(asked):
      if question.targets:
        sharing.setdefault(question.inputs, []).append(i)
    batch: list[list[int]] = []
    room = 0  # places that may still be asked for
    for inputs in sorted(sharing, key=lambda ids: (-len(ids), ids)):
      fresh = True
      for i in sharing[inputs]:
        needed = len(asked[i].targets)
        if batch and (needed > room or (fresh and len(batch) == self._rows)):
          yield batch
          batch, fresh = [], True
        if not batch:
          room = self._rows * self._width(len(inputs))
        if fresh:
          batch.append([])
        batch[-1].append(i)
        room, fresh = room - needed, False
    if batch:
      yield batch

  def _width(self, length: int) -> int:
    return min(length + -length % _STEP, self._lm.config.max_position_embeddings)

  def _start(
    self, asked: Sequence[Asked], batch: list[list[int]], T: int
  ) -> tuple[jax.Array, jax.Array]:
    B = self._rows
    ids_BxT = np.zeros((B, T), np.int32)
    place_N, target_N = np.zeros(B * T, np.int32), np.zeros(B * T, np.int32)
    n = 0
    for b, sharing in enumerate(batch):
      inputs = asked[sharing[0]].inputs
      ids_BxT[b, : len(inputs)] = inputs
      for i in sharing:
        k = len(asked[i].targets)
        place_N[n : n + k] = b * T + len(inputs) - k + np.arange(k)
        target_N[n : n + k] = asked[i].targets
        n += k
    self.shapes.add((B, T))
    with jax.set_mesh(self._lm.mesh):
      ids = steps.place_batch({"ids": ids_BxT}, self._lm.mesh, B)["ids"]
      return _score(self._module, self._lm.params, ids, place_N, target_N, np.int32(n))


def _fetched(
  asked: Sequence[Asked], batch: list[list[int]], scores: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[int, Answer]]:
  logprob_N, greedy_N = (np.asarray(x) for x in scores)
  n = 0
  for i in (i for sharing in batch for i in sharing):
    k = len(asked[i].targets)
    yield i, Answer(logprob_N[n : n + k], greedy_N[n : n + k])
    n += k


@functools.partial(jax.jit, static_argnames="module")
def _score(module, params, ids_BxT, place_N, target_N, count) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities, and whether each is the greedy choice, of `count` targets of N.

  place_N: where their logits are, counted through the batch row by row. As many chunks are
  computed as `count` asks for: the program is the same for any.
  """
  B, N = ids_BxT.shape[0], place_N.shape[0]
  per_row = -(-_CHUNK // B)
  C = B * per_row
  place_N, target_N = (jnp.pad(x, (0, -N % C)) for x in (place_N, target_N))
  hidden_BxTxD = module.apply({"params": params}, ids_BxT)
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
    ids_V = jnp.arange(logits_BxRxV.shape[-1])
    better_BxRxV = (logits_BxRxV > of_target_BxRx1) | (
      (logits_BxRxV == of_target_BxRx1) & (ids_V < target_BxRx1)
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
