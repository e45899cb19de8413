"""Negative log-likelihood of documents, from the windows in which they are scored."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(
  start: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
  """Each item with what `start` makes of it, after the next one has been started.

  start: begins a computation on the device and does not wait for it. While the device computes, the
  result before it is used and the next item is made.
  """
  waiting = None
  for item in items:
    started = item, start(item)
    if waiting is not None:
      yield waiting
    waiting = started
  if waiting is not None:
    yield waiting


def document_nll(
  predict: Callable[[dict[str, np.ndarray]], Any], batches: Iterable[dict[str, np.ndarray]]
) -> dict[int, float]:
  """Summed negative log-likelihood of each document, in nats, by its index.

  predict: starts the computation of a batch (without `row_document`) and returns the negative
    log-likelihood of each token times its weight, B x T.
  batches: as `EvaluationBatches` makes them. Sums are float64.
  """
  nll: dict[int, float] = {}
  arrays = lambda batch: {k: v for k, v in batch.items() if k != "row_document"}
  for batch, nll_BxT in one_ahead(lambda batch: predict(arrays(batch)), batches):
    nll_B = np.asarray(nll_BxT, np.float64).sum(-1)
    for document, value in zip(batch["row_document"].tolist(), nll_B.tolist()):
      if document >= 0:  # not a row of padding
        nll[document] = nll.get(document, 0.0) + value
  return nll
