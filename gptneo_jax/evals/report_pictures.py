"""The pictures of one report, and of several side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gptneo_jax.evals import pictures

_Report = Mapping[str, Any]
# Metrics that are shares of 1, so that one axis can show them.
_SHARES = ("acc", "acc_norm", "exact_match", "f1")


def draw(name: str, report: _Report, path: pathlib.Path) -> list[str]:
  """Loss by position, calibration and bits per byte of documents; a note if it was not drawn."""
  data, results = report["data"], report["results"]
  groups = {
    key.partition("/")[2] or "all": figures["bits_per_byte"]
    for key, figures in results.items()
    if key.partition("/")[0] == "data" and figures["bits_per_byte"] is not None
  }
  height = max(4.2, 0.3 * len(groups) + 1)
  footer = f"{name}: {data['source']}, {data['windows']}"
  try:
    with pictures.drawing(path, 3, footer, height=height) as (by_position, calibration, per_subset):
      _by_position(by_position, {name: report})
      _calibration(calibration, data)
      pictures.bars(per_subset, {"": groups}, horizontal=True)
      per_subset.set(title="bits per byte", xlabel="bits per byte of text")
  except ModuleNotFoundError:
    return [_no_matplotlib(path)]
  return []


def draw_comparison(
  names: Sequence[str], reports: Sequence[_Report], rows: Sequence[Any], path: pathlib.Path
) -> list[str]:
  """Bits per byte, loss by position if the tokenizers are the same, shares of right answers."""
  bits = _by_name(names, rows, lambda row: _subset(row), ("bits_per_byte",))
  shares = _by_name(names, rows, lambda row: row.label, _SHARES)
  with_data = {name: report for name, report in zip(names, reports) if "data" in report}
  comparable = len({report.get("tokenizer") for report in with_data.values()}) == 1
  panels = [bool(bits), bool(with_data) and comparable, bool(shares)]
  if not any(panels):
    return [f"{path} was not drawn: there is neither bits per byte nor a share of right answers"]
  groups = max(len({group for row in part.values() for group in row}) for part in (bits, shares))
  height = max(4.2, 0.25 * groups * len(names) + 1.5)
  try:
    with pictures.drawing(path, sum(panels), "", width=5.5, height=height) as axes:
      remaining = iter(axes)
      if bits:
        axis = next(remaining)
        pictures.bars(axis, bits, horizontal=True)
        axis.set(title="bits per byte", xlabel="bits per byte of text")
        pictures.legend(axis)
      if panels[1]:
        _by_position(next(remaining), with_data)
      if shares:
        axis = next(remaining)
        pictures.bars(axis, shares, horizontal=True)
        axis.set(title="right answers", xlabel="share of the items")
        pictures.legend(axis)
  except ModuleNotFoundError:
    return [_no_matplotlib(path)]
  return []


def _by_name(
  names: Sequence[str], rows: Sequence[Any], label: Any, metrics: Sequence[str]
) -> dict[str, dict[str, float]]:
  """{model: {label of the row: value}} of some metrics, without values that a model lacks."""
  chosen = [row for row in rows if row.metric in metrics]
  of = {
    name: {label(row): row.values[i] for row in chosen if row.values[i] is not None}
    for i, name in enumerate(names)
  }
  return {name: values for name, values in of.items() if values}


def _subset(row: Any) -> str:
  task, _, subset = row.task.partition("/")
  return subset or "all" if task == "data" else row.task


def _by_position(axis: Any, reports: Mapping[str, _Report]) -> None:
  for name, report in reports.items():
    bins = report["data"]["by_position"]
    centres = [(b["from"] * b["to"]) ** 0.5 for b in bins]
    axis.plot(centres, [b["loss"] for b in bins], marker=".", label=name)
  windows = {
    report["model"]["window_size"]
    for report in reports.values()
    if "local" in report["model"]["attention_pattern"]
    and report["model"]["window_size"] < report["data"]["by_position"][-1]["to"]
  }
  for window in sorted(windows):
    label = f"window of local layers, {window} tokens"
    axis.axvline(window, color=pictures.GREY, linestyle=":", label=label)
  axis.set_xscale("log", base=2)
  axis.xaxis.set_major_formatter("{x:,.0f}")
  axis.set(title="loss by position", xlabel="tokens of context", ylabel="nats per token")
  if len(reports) > 1 or windows:
    pictures.legend(axis)


def _calibration(axis: Any, data: Mapping[str, Any]) -> None:
  bins = data["calibration"]
  axis.plot([0, 1], [0, 1], color=pictures.GREY, linestyle=":", label="perfect")
  axis.plot(
    [b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="measured"
  )
  axis.set(
    title=f"calibration (error {data['calibration_error']:.3f})",
    xlabel="confidence in the likeliest token", ylabel="share of tokens where it is right",
    xlim=(0, 1), ylim=(0, 1),
  )  # fmt: skip
  pictures.legend(axis)


def _no_matplotlib(path: pathlib.Path) -> str:
  return f"{path} was not drawn: pip install matplotlib"
