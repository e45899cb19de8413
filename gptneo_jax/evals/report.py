"""Reports of evaluations: written as JSON, as a table, as a picture; several side by side."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gptneo_jax.errors import UserError
from gptneo_jax.evals import published

# Of documents, in the order in which they stand in a table, with their formats.
_FIGURES = {
  "loss": "{:.4f}",
  "perplexity": "{:.3f}",
  "bits_per_byte": "{:.4f}",
  "word_perplexity": "{:.5g}",
  "accuracy": "{:.4f}",
  "documents": "{:,}",
  "tokens": "{:,}",
  "bytes": "{:,}",
}
_COUNTS = ("documents", "tokens", "words", "bytes")


def write(report: Mapping[str, Any], path: str) -> list[str]:
  """Writes FILE.json, FILE.md and, where there is something to draw, FILE.png; returns notes.

  The JSON appears at once and whole. Raises UserError if it cannot be written.
  """
  target = pathlib.Path(path)
  new = target.with_name(target.name + ".new")
  try:
    new.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, target)
    target.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
  except OSError as error:
    raise UserError(f"the report cannot be written: {error}") from None
  return _draw(report, target.with_suffix(".png")) if "data" in report else []


def read(path: str) -> dict[str, Any]:
  """A report that `write` wrote. Raises UserError."""
  try:
    report = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if not isinstance(report, dict) or not isinstance(report.get("results"), dict):
    raise UserError(f"{path} is no report of gptneo_jax.evaluate: it has no results")
  return report


# --- tables ---------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
  """What a reader wants to see of one report."""
  parts = [f"# {name(report)}", _about(report)]
  results = report["results"]
  documents = {key: results[key] for key in results if key.partition("/")[0] == "data"}
  if documents:
    data = report["data"]
    rows = [
      [key.partition("/")[2] or "all", *_formatted(figures)] for key, figures in documents.items()
    ]
    parts += [
      f"## Documents\n\n{data['source']}: {data['windows']}, the end of text before each document,"
      " each token scored once.",
      _table(["subset", *(figure.replace("_", " ") for figure in _FIGURES)], rows),
      f"Calibration error {data['calibration_error']:.4f}: mean distance between the confidence in"
      " the likeliest token and how often it was right.",
    ]
  others = {key: results[key] for key in results if key not in documents}
  if others:
    rows = [
      [key, metric, _number(value), _number(metrics.get(_stderr(metric)))]
      for key, metrics in others.items()
      for metric, value in metrics.items()
      if "_stderr" not in metric
    ]
    parts += ["## Tasks", _table(["task", "metric", "value", "standard error"], rows)]
  if missing := report.get("tasks", {}).get("missing"):
    parts.append(
      "Not evaluated:\n\n" + "\n".join(f"- {task}: {why}" for task, why in missing.items())
    )
  if columns := paper_columns(report):
    parts += ["## The published table", _published_table({name(report): columns}, [report])]
  if overlap := report.get("overlap"):
    parts.append(
      f"## Overlap with training data\n\n{overlap['overlapping']} of {overlap['items']} items share"
      f" {overlap['n']} words in a row with the training data."
    )
  return "\n\n".join(parts) + "\n"


def compare(reports: Sequence[Mapping[str, Any]]) -> str:
  """Reports side by side, a row for each number that any of them has; the published ones beside."""
  names = _unlike([name(report) for report in reports])
  rows = [["parameters", *(f"{report['parameters']:,}" for report in reports)]]
  if any("data" in report for report in reports):
    windows = [report.get("data", {}).get("windows", "") for report in reports]
    rows.append(["windows", *windows])
  keys = dict.fromkeys(
    (task, metric)
    for report in reports
    for task, metrics in report["results"].items()
    for metric in metrics
    if "_stderr" not in metric and (metric not in _COUNTS or task == "data")
  )
  for task, metric in keys:
    values = [report["results"].get(task, {}).get(metric) for report in reports]
    rows.append([f"{task} {metric}", *(_number(value) for value in values)])
  parts = [_table(["", *names], rows)]
  columns = {key: found for key, report in zip(names, reports) if (found := paper_columns(report))}
  if columns:
    parts.append(_published_table(columns, reports))
  return "\n\n".join(parts) + "\n"


def name(report: Mapping[str, Any]) -> str:
  """The model's name, for a title: the last part of where it came from, and what was done to it."""
  arguments = report["arguments"]
  made = [arguments[key] for key in ("dtype", "quantise") if arguments.get(key)]
  short = pathlib.PurePath(report["checkpoint"]["name"]).name or report["checkpoint"]["name"]
  return " ".join([short, *made])


def paper_columns(report: Mapping[str, Any]) -> dict[str, float]:
  """What a report has for columns of the published table, in the table's units."""
  return {
    row["column"]: published.in_units(row["column"], row["value"])
    for row in report.get("tasks", {}).get("columns") or ()
    if row["value"] is not None
  }


def _published_table(
  columns: Mapping[str, Mapping[str, float]], reports: Sequence[Mapping[str, Any]]
) -> str:
  rows = [
    [model, *(_number(values.get(column)) for column in published.COLUMNS)]
    for model, values in columns.items()
  ]
  beside: dict[str, Any] = {}
  for report in reports:
    beside |= published.rows_beside(report["model"])
  rows += [
    [f"{model}, published", *(_number(value) for value in beside[model])] for model in beside
  ]
  note = (
    f"Published: {published.SOURCE}, accuracies in %. Its Pile and Wikitext figures of 1.3B"
    " and 2.7B are by another evaluator, per token."
  )
  return _table(["", *published.COLUMNS], rows) + "\n\n" + note


def _about(report: Mapping[str, Any]) -> str:
  where, versions = report["checkpoint"], report["versions"]
  step = f", step {where['step']}" if "step" in where else ""
  return (
    f"{where['name']}{step}: {report['parameters']:,} parameters, {report['hardware']['device']},"
    f" gptneo_jax {versions['gptneo_jax']}, jax {versions['jax']}, {report['date']}."
  )


def _stderr(metric: str) -> str:
  """The harness' name of a metric's standard error; what stands behind a comma is a filter."""
  return re.sub("(,|$)", r"_stderr\1", metric, count=1)


def _formatted(figures: Mapping[str, Any]) -> list[str]:
  return [
    "-" if figures[figure] is None else form.format(figures[figure])
    for figure, form in _FIGURES.items()
  ]


def _number(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or "-"
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns are aligned in plain text too; numbers to the right."""
  cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
  widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

  def line(row: Sequence[str]) -> str:
    first, *others = zip(row, widths)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"

  rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
  return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))


def _unlike(names: Sequence[str]) -> list[str]:
  """The names, with numbers where two are the same."""
  return [
    f"{text} ({number})" if names.count(text) > 1 else text for number, text in enumerate(names, 1)
  ]


# --- pictures -------------------------------------------------------------------------------------


def _draw(report: Mapping[str, Any], path: pathlib.Path) -> list[str]:
  """Loss by position and per subset, calibration. Returns a note where it cannot be drawn."""
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ModuleNotFoundError:
    return [f"{path} was not drawn: pip install matplotlib"]
  data, results = report["data"], report["results"]
  subsets = {
    key.partition("/")[2]: figures["loss"] for key, figures in results.items() if "data/" in key
  }
  figure = Figure(figsize=(5 * (3 if subsets else 2), 4.2), layout="constrained")
  FigureCanvasAgg(figure)
  by_position, calibration, *rest = figure.subplots(1, 3 if subsets else 2)

  bins = data["by_position"]
  centres = [(b["from"] * b["to"]) ** 0.5 for b in bins]
  by_position.plot(centres, [b["loss"] for b in bins], marker=".")
  model = report["model"]
  window = model["window_size"]
  if "local" in model["attention_pattern"] and window < bins[-1]["to"]:
    by_position.axvline(window, color="grey", linestyle=":", label="local layers' window")
    by_position.legend()
  by_position.set_xscale("log", base=2)
  by_position.set(title="loss by position", xlabel="tokens of context", ylabel="nats per token")

  bins = data["calibration"]
  calibration.plot([0, 1], [0, 1], color="grey", linestyle=":")
  calibration.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o")
  calibration.set(
    title=f"calibration (error {data['calibration_error']:.3f})",
    xlabel="confidence in the likeliest token", ylabel="how often it is right",
    xlim=(0, 1), ylim=(0, 1),
  )  # fmt: skip

  if subsets:
    ordered = sorted(subsets, key=lambda subset: -subsets[subset])
    rest[0].barh(ordered, [subsets[subset] for subset in ordered])
    rest[0].axvline(results["data"]["loss"], color="grey", linestyle=":", label="all")
    rest[0].legend()
    rest[0].set(title="loss per subset", xlabel="nats per token")
  figure.supxlabel(f"{name(report)}: {data['source']}, {data['windows']}", fontsize="small")
  figure.savefig(path, dpi=110)
  return []
