"""Reports of evaluations: written as JSON, as a table, as a picture."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptneo_jax.errors import UserError
from gptneo_jax.evals import published, report_pictures

# Of documents, in the order in which they stand in a table, with their formats.
_FIGURES = {
  "bits_per_byte": "{:.4f}",  # the only one that means the same for every tokenizer
  "loss": "{:.4f}",
  "perplexity": "{:.3f}",
  "word_perplexity": "{:.5g}",
  "accuracy": "{:.4f}",
  "documents": "{:,}",
  "tokens": "{:,}",
  "bytes": "{:,}",
}

_KEYS = {"arguments", "checkpoint", "model", "parameters", "results", "versions"}  # of each report


def write(report: Mapping[str, Any], path: str) -> list[str]:
  """Writes FILE.json, FILE.md and, where there is something to draw, FILE.png; returns notes.

  The JSON appears at once and whole; what is not finite, and so no JSON, is null in it (see
  `not_finite`). Raises UserError if it cannot be written.
  """
  report = finite(report)
  target = pathlib.Path(path)
  write_files(target, report, markdown(report))
  picture = target.with_suffix(".png")
  return report_pictures.draw(name(report), report, picture) if "data" in report else []


def write_files(target: pathlib.Path, content: Mapping[str, Any], text: str) -> None:
  """Writes `content` to FILE.json, which appears at once and whole, and `text` to FILE.md.

  Raises UserError if they cannot be written.
  """
  new = target.with_name(target.name + ".new")
  try:
    new.write_text(
      json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(new, target)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
  except OSError as error:
    raise UserError(f"{target} cannot be written: {error}") from None


def write_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path) -> None:
  """Items of tasks with their answers, a line of JSON for each."""
  with path.open("w", encoding="utf-8") as file:
    for task, rows in samples.items():
      for row in rows:
        plain = json.loads(json.dumps({"task": task, **row}, default=str))
        file.write(json.dumps(finite(plain), allow_nan=False) + "\n")


def not_finite(value: Any, place: str = "") -> Iterator[str]:
  """The places of numbers that are NaN or infinite, as 'results.piqa.acc'."""
  if isinstance(value, float) and not math.isfinite(value):
    yield place
  elif isinstance(value, Mapping | list | tuple):
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, part in entries:
      yield from not_finite(part, f"{place}.{key}" if place else str(key))


def finite(value: Any) -> Any:
  """The same, with null where JSON has no number: NaN and infinity."""
  if isinstance(value, Mapping):
    return {key: finite(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: str) -> dict[str, Any]:
  """A report that `write` wrote. Raises UserError."""
  try:
    report = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  lacking = _KEYS - (report.keys() if isinstance(report, dict) else set())
  if lacking:
    raise UserError(
      f"{path} is no report of gptneo_jax.evaluate: it lacks {', '.join(sorted(lacking))}"
    )
  return finite(report)


# --- tables ---------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
  """What a reader wants to see of one report."""
  parts = [f"# {name(report)}", _about(report)]
  results = report["results"]
  documents = {key: results[key] for key in results if key.partition("/")[0] == "data"}
  limit = report["arguments"].get("limit")
  if documents:
    data = report["data"]
    rows = [
      [key.partition("/")[2] or "all", *_formatted(figures)] for key, figures in documents.items()
    ]
    first = f", the first {limit:,} documents" if limit else ""
    parts += [
      f"## Documents\n\n{data['source']}{first}: {data['windows']}, the end of text before each"
      " document, each token scored once.",
      table(["subset", *(figure.replace("_", " ") for figure in _FIGURES)], rows),
      f"Calibration error {data['calibration_error']:.4f}: mean distance between the confidence in"
      " the likeliest token and how often it was right.",
    ]
  others = {key: results[key] for key in results if key not in documents}
  if others:
    of_tasks = report.get("tasks", {})
    shots, items = of_tasks.get("num_fewshot", {}), of_tasks.get("items", {})
    rows = [
      [
        key, metric, number(value), number(metrics.get(_stderr(metric))),
        number(shots.get(key)), number(items.get(key)),
      ]
      for key, metrics in others.items()
      for metric, value in metrics.items()
      if "_stderr" not in metric
    ]  # fmt: skip
    first = f"\n\nThe first {limit:,} items of each." if limit else ""
    head = ["task", "metric", "value", "standard error", "shots", "items"]
    parts += [f"## Tasks{first}", table(head, rows)]
  if missing := report.get("tasks", {}).get("missing"):
    parts.append(
      "Not evaluated:\n\n" + "\n".join(f"- {task}: {why}" for task, why in missing.items())
    )
  if columns := paper_columns(report):
    parts += ["## The published table", published_table({name(report): columns}, [report])]
  if overlap := report.get("overlap"):
    parts.append(
      f"## Overlap with training data\n\n{overlap['overlapping']} of {overlap['items']} items share"
      f" {overlap['n']} words in a row with the training data."
    )
  return "\n\n".join(parts) + "\n"


def name(report: Mapping[str, Any]) -> str:
  """The model's name, for a title: the last part of where it came from, and what was done to it."""
  arguments = report["arguments"]
  made = [arguments[key] for key in ("dtype", "quantise") if arguments.get(key)]
  if arguments.get("adapter"):
    made.append(f"+ {pathlib.PurePath(arguments['adapter']).name}")
  where = pathlib.PurePath(report["checkpoint"]["name"])
  folder = where.parent if where.name.isdecimal() else where  # FOLDER/STEP
  short = folder.name or str(where)
  return " ".join([short, *made])


def paper_columns(report: Mapping[str, Any]) -> dict[str, float]:
  """What a report has for columns of the published table, in the table's units."""
  return {
    row["column"]: published.in_units(row["column"], row["value"])
    for row in report.get("tasks", {}).get("columns") or ()
    if row["value"] is not None
  }


def published_table(
  columns: Mapping[str, Mapping[str, float]], reports: Sequence[Mapping[str, Any]]
) -> str:
  rows = [
    [model, *(number(values.get(column)) for column in published.COLUMNS)]
    for model, values in columns.items()
  ]
  beside: dict[str, Any] = {}
  for report in reports:
    beside |= published.rows_beside(report["model"])
  rows += [[f"{model}, published", *(number(value) for value in beside[model])] for model in beside]
  note = (
    f"Published: {published.SOURCE}, accuracies in %. Its Pile and Wikitext figures of 1.3B"
    " and 2.7B are by another evaluator, per token."
  )
  return table(["", *published.COLUMNS], rows) + "\n\n" + note


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


def number(value: Any) -> str:
  """As a table shows it; None as a dash."""
  if value is None or isinstance(value, str):
    return value or "-"
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns are aligned in plain text too; numbers to the right."""
  cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
  widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

  def line(row: Sequence[str]) -> str:
    first, *others = zip(row, widths)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"

  rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
  return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))
