"""What predictions are worth on a labelled file: metrics, and which label is taken for which."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptneo_jax.evals import pictures
from gptneo_jax.examples import label_predictions, labels
from gptneo_jax.generation import prediction

_MOST_NUMBERS = 25  # labels of a picture in whose squares the counts are written


def evaluate(
  lm: Any,
  path: str,
  *,
  given: str | None = None,
  batch_size: int = prediction.ROWS,
  limit: int | None = None,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
  """`metrics`, the number of `records`, their `source` and, of one label a record, `confusion`:
  `labels` and `counts`, true label by row and predicted label by column.

  given: data.columns; None: as in training. Raises UserError, with file and line.
  """
  spec, kind = prediction.task_of(lm)
  records = list(itertools.islice(prediction.read(lm, path, given, labelled=True), limit))
  said = prediction.predict(lm, records, batch_size=batch_size, progress=progress)
  found: dict[str, Any] = {
    "source": path,
    "task": spec.task,
    "records": len(records),
    "metrics": kind.metrics(said, records, spec),
  }
  if spec.problem == labels.SINGLE:
    place = {name: number for number, name in enumerate(spec.labels)}
    true = np.array([labels.target(record, spec).argmax() for record in records])
    guessed = np.array([place[one["label"]] for one in said])
    counts = label_predictions.confusion_matrix(true, guessed, len(place))
    found["confusion"] = {"labels": list(spec.labels), "counts": counts.tolist()}
  return found


def draw_confusion(
  names: Sequence[str], counts: Sequence[Sequence[int]], path: pathlib.Path, footer: str
) -> list[str]:
  """The matrix as a picture, each row as shares of its true label; a note if it was not drawn."""
  counts_CxC = np.array(counts)
  shares_CxC = counts_CxC / np.maximum(counts_CxC.sum(1, keepdims=True), 1)
  size = max(4.2, 0.28 * len(names) + 2)
  try:
    with pictures.drawing(path, 1, footer, width=size + 0.8, height=size) as (axis,):
      image = axis.imshow(shares_CxC, cmap="Blues", vmin=0, vmax=1)
      axis.figure.colorbar(image, ax=axis, label="share of the true label", shrink=0.8)
      axis.set(title="true label by row", xlabel="predicted", ylabel="true")
      axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
      axis.set_yticks(range(len(names)), names)
      axis.grid(visible=False)
      if len(names) > _MOST_NUMBERS:
        return []
      for row, column in itertools.product(range(len(names)), repeat=2):
        if counts_CxC[row, column]:
          colour = "white" if shares_CxC[row, column] > 0.5 else "black"
          axis.text(column, row, counts_CxC[row, column], ha="center", va="center", color=colour)
  except ModuleNotFoundError:
    return [f"{path} was not drawn: matplotlib is not installed: pip install 'gptneo_jax[eval]'"]
  return []
