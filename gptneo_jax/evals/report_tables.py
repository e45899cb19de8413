"""Reports as Markdown tables."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gptneo_jax.evals import published

# Figures of documents in the order of the table's columns, with their formats.
_FIGURES = {
  "bits_per_byte": "{:.4f}",  # first: the only one that can be compared across tokenizers
  "loss": "{:.4f}",
  "perplexity": "{:.3f}",
  "word_perplexity": "{:.5g}",
  "accuracy": "{:.4f}",
  "documents": "{:,}",
  "tokens": "{:,}",
  "bytes": "{:,}",
}


def markdown(report: Mapping[str, Any]) -> str:
  """The page of a report: documents, harness tasks, the published table, contamination."""
  parts = [f"# {name(report)}", _origin(report), *_documents(report), *_tasks(report)]
  if columns := paper_columns(report):
    parts += ["## The published table", published_table({name(report): columns}, [report])]
  if overlap := report.get("overlap"):
    parts.append(
      f"## Overlap with training data\n\n{overlap['overlapping']} of {overlap['items']} items share"
      f" {overlap['n']} words in a row with the training data."
    )
  return "\n\n".join(parts) + "\n"


def _origin(report: Mapping[str, Any]) -> str:
  checkpoint, device = report["checkpoint"], report["hardware"]["device"]
  step = f", step {checkpoint['step']}" if "step" in checkpoint else ""
  return (
    f"{checkpoint['name']}{step}: {report['parameters']:,} parameters, {device},"
    f" gptneo_jax {report['versions']['gptneo_jax']}, jax {report['versions']['jax']},"
    f" {report['date']}."
  )


def _documents(report: Mapping[str, Any]) -> list[str]:
  """Figures of all documents and of each subset."""
  figures_of = {key: value for key, value in report["results"].items() if _is_of_documents(key)}
  if not figures_of:
    return []
  data, limit = report["data"], report["arguments"].get("limit")
  rows = [
    [key.partition("/")[2] or "all", *_formatted(figures)] for key, figures in figures_of.items()
  ]
  first = f", the first {limit:,} documents" if limit else ""
  return [
    f"## Documents\n\n{data['source']}{first}: {data['windows']}, the end of text before each"
    " document, each token scored once.",
    table(["subset", *(figure.replace("_", " ") for figure in _FIGURES)], rows),
    f"Calibration error {data['calibration_error']:.4f}: mean distance between the confidence in"
    " the likeliest token and how often it was right.",
  ]


def _tasks(report: Mapping[str, Any]) -> list[str]:
  """Metrics of harness tasks and of answers, and the tasks that are missing."""
  tasks, limit = report.get("tasks", {}), report["arguments"].get("limit")
  shots, items = tasks.get("num_fewshot", {}), tasks.get("items", {})
  rows = [
    [
      task, metric, number(value), number(metrics.get(_stderr(metric))), number(shots.get(task)),
      number(items.get(task)),
    ]
    for task, metrics in report["results"].items()
    if not _is_of_documents(task)
    for metric, value in metrics.items()
    if "_stderr" not in metric
  ]  # fmt: skip
  parts = []
  if rows:
    first = f"\n\nThe first {limit:,} items of each." if limit else ""
    head = ["task", "metric", "value", "standard error", "shots", "items"]
    parts += [f"## Tasks{first}", table(head, rows)]
  if missing := tasks.get("missing"):
    parts.append(
      "Not evaluated:\n\n" + "\n".join(f"- {task}: {why}" for task, why in missing.items())
    )
  return parts


def _is_of_documents(key: str) -> bool:
  return key.partition("/")[0] == "data"


def name(report: Mapping[str, Any]) -> str:
  """The model's name for titles: its folder, and the dtype, quantization and adapter asked for."""
  arguments = report["arguments"]
  changes = [arguments[key] for key in ("dtype", "quantization") if arguments.get(key)]
  if arguments.get("adapter"):
    changes.append(f"+ {pathlib.PurePath(arguments['adapter']).name}")
  path = pathlib.PurePath(report["checkpoint"]["name"])
  folder = path.parent if path.name.isdecimal() else path  # FOLDER/STEP
  short = folder.name or str(path)
  return " ".join([short, *changes])


def paper_columns(report: Mapping[str, Any]) -> dict[str, float]:
  """The report's values for columns of the published table, in the table's units."""
  return {
    row["column"]: published.in_units(row["column"], row["value"])
    for row in report.get("tasks", {}).get("columns") or ()
    if row["value"] is not None
  }


def published_table(
  columns: Mapping[str, Mapping[str, float]], reports: Sequence[Mapping[str, Any]]
) -> str:
  """Rows of the models, then the published rows of models of their shapes.

  columns: {model: {column: value}}.
  """
  rows = [
    [model, *(number(values.get(column)) for column in published.COLUMNS)]
    for model, values in columns.items()
  ]
  released: dict[str, Any] = {}
  for report in reports:
    released |= published.rows_for(report["model"])
  rows += [[f"{m}, published", *map(number, values)] for m, values in released.items()]
  note = (
    f"Published: {published.SOURCE}, accuracies in %. Its Pile and Wikitext figures of 1.3B"
    " and 2.7B are by another evaluator, per token."
  )
  return table(["", *published.COLUMNS], rows) + "\n\n" + note


def _stderr(metric: str) -> str:
  """The harness' name of a metric's standard error; a filter's name follows a comma."""
  return re.sub("(,|$)", r"_stderr\1", metric, count=1)


def _formatted(figures: Mapping[str, Any]) -> list[str]:
  return [
    "-" if figures[figure] is None else form.format(figures[figure])
    for figure, form in _FIGURES.items()
  ]


def number(value: Any) -> str:
  """A number as tables show it; None as a dash."""
  if value is None or isinstance(value, str):
    return value or "-"
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table that is also aligned as plain text, all but the first column to the right."""
  cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
  widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

  def line(row: Sequence[str]) -> str:
    first, *others = zip(row, widths)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"

  rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
  return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))
