"""One style for the pictures of evaluations, runs and benchmarks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": "medium",
  "axes.titleweight": "bold",
  "figure.constrained_layout.use": True,
  "font.size": 9,
  "grid.alpha": 0.3,
  "legend.fontsize": "small",
  "legend.frameon": False,
  "lines.linewidth": 1.4,
  "savefig.dpi": 120,
}
# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.55"


@contextlib.contextmanager
def drawing(
  path: str | os.PathLike[str], count: int, footer: str = "", *, width: float = 5.0,
  height: float = 4.2,
) -> Iterator[Sequence[Any]]:  # fmt: skip
  """`count` axes side by side, each `width` x `height` inches, saved to `path` on exit.

  Raises ModuleNotFoundError if matplotlib is not installed.
  """
  import matplotlib
  from cycler import cycler
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
    figure = Figure(figsize=(width * count, height))
    FigureCanvasAgg(figure)
    yield figure.subplots(1, count, squeeze=False)[0]
    if footer:
      figure.supxlabel(footer, fontsize="small", color="0.3")
    figure.savefig(path)


def legend(axis: Any) -> None:
  """Draws the legend below the axes, if there is anything to name."""
  handles, labels = axis.get_legend_handles_labels()
  if handles:
    columns = 1 if max(map(len, labels)) > 30 else min(3, len(labels))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def bars(
  axis: Any,
  series: Mapping[str, Mapping[str, Any]],
  *,
  horizontal: bool = False,
) -> None:
  """Groups of bars, each labelled with its value.

  series: {label in the legend: {name of the group: a value, or (middle, low, high)}}.
  """
  names = list(dict.fromkeys(name for row in series.values() for name in row))
  thick = 0.8 / len(series)
  draw = axis.barh if horizontal else axis.bar
  spread = "xerr" if horizontal else "yerr"
  for number, (label, row) in enumerate(series.items()):
    middle, low, high = np.transpose([_bounds(value) for value in row.values()])
    places = [names.index(name) + (number - (len(series) - 1) / 2) * thick for name in row]
    errors = np.array([middle - low, high - middle])
    shown = draw(
      places, middle, thick * 0.92, label=label if len(series) > 1 else "",
      error_kw={"elinewidth": 1, "capsize": 2}, **({spread: errors} if errors.any() else {}),
    )  # fmt: skip
    axis.bar_label(shown, [_short(value) for value in middle], padding=2, fontsize="x-small")
  ticks = (axis.set_yticks, axis.set_xticks)[not horizontal]
  ticks(range(len(names)), names)
  if horizontal:
    axis.invert_yaxis()  # the first on top
    axis.margins(x=0.15)
    axis.grid(visible=False, axis="y")
  else:
    axis.margins(y=0.12)
    axis.grid(visible=False, axis="x")
    if len(names) > 1 and sum(map(len, names)) > 36:
      axis.tick_params("x", rotation=25)


def smoothed(values: Sequence[float], span: int) -> np.ndarray:
  """Centred moving mean over `span` values; over fewer, but symmetrically, at the ends."""
  sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  places = np.arange(len(values))
  half = np.minimum(span // 2, np.minimum(places, len(values) - 1 - places))
  return (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)


def _short(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _bounds(value: Any) -> tuple[float, float, float]:
  return value if isinstance(value, tuple) else (value, value, value)
