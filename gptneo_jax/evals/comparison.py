"""Reports side by side; figures that cannot be compared are marked."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gptneo_jax.evals import report_pictures, report_tables
from gptneo_jax.evals.report import write_files

_Report = Mapping[str, Any]
# Figures of documents that can only be compared between models with the same tokenizer.
_PER_TOKEN = ("loss", "perplexity", "accuracy", "tokens")
_COUNTS = ("documents", "tokens", "words", "bytes")
_MARK = "*"


class Row(NamedTuple):
  """One figure of each report; None where a report lacks it."""

  task: str
  metric: str
  shots: int | None
  values: list[float | int | None]

  @property
  def per_token(self) -> bool:
    of_data = self.task.partition("/")[0] == "data"
    return self.metric == "token_perplexity" or (of_data and self.metric in _PER_TOKEN)

  @property
  def label(self) -> str:
    return f"{self.task} {self.metric}" + ("" if self.shots is None else f", {self.shots} shots")


def write(reports: Sequence[_Report], files: Sequence[str], path: str) -> list[str]:
  """Writes FILE.json, FILE.md and FILE.png; returns notes to print.

  Raises UserError if a file cannot be written.
  """
  content = {
    "compared": [
      {"file": file, "name": name, "checkpoint": report["checkpoint"]}
      for file, name, report in zip(files, names(reports), reports)
    ],
    "rows": [row._asdict() for row in rows(reports)],
    "notes": notes(reports),
  }
  target = pathlib.Path(path)
  write_files(target, content, markdown(reports))
  picture = target.with_suffix(".png")
  return report_pictures.draw_comparison(names(reports), reports, rows(reports), picture)


def names(reports: Sequence[_Report]) -> list[str]:
  """The model's name of each report, numbered where several have the same."""
  plain = [report_tables.name(report) for report in reports]
  return [
    f"{text} ({number})" if plain.count(text) > 1 else text for number, text in enumerate(plain, 1)
  ]


def rows(reports: Sequence[_Report]) -> list[Row]:
  """A row for each figure that any report has; bits per byte come first within a task.

  The same task with another number of few-shot examples has a row of its own.
  """
  keys = dict.fromkeys(
    (task, metric, _shots(report, task))
    for report in reports
    for task, metrics in report["results"].items()
    for metric in sorted(metrics, key=lambda metric: metric != "bits_per_byte")
    if "_stderr" not in metric and (metric not in _COUNTS or task == "data")
  )
  return [
    Row(task, metric, shots, [
      report["results"].get(task, {}).get(metric) if _shots(report, task) == shots else None
      for report in reports
    ])
    for task, metric, shots in keys
  ]  # fmt: skip


def markdown(reports: Sequence[_Report]) -> str:
  """The figures, the notes, and the published table."""
  head = names(reports)
  other = _of_another_tokenizer(reports)
  number = report_tables.number
  table = [["parameters", *(number(report["parameters"]) for report in reports)]]
  steps = [report["checkpoint"].get("step") for report in reports]
  if any(step is not None for step in steps):
    table.append(["step", *(number(step) for step in steps)])
  for key in ("source", "windows"):
    if any("data" in report for report in reports):
      table.append([key, *(report.get("data", {}).get(key, "") for report in reports)])
  if any(limit is not None for limit in _limits(reports)):
    table.append(["limit", *(number(limit) for limit in _limits(reports))])
  for row in rows(reports):
    marks = [_MARK if row.per_token and marked else "" for marked in other]
    cells = [
      number(value) + (mark if value is not None else "") for value, mark in zip(row.values, marks)
    ]
    table.append([row.label, *cells])
  parts = [report_tables.table(["", *head], table), *notes(reports)]
  columns = {
    name: found
    for name, report in zip(head, reports)
    if (found := report_tables.paper_columns(report))
  }
  if columns:
    parts.append(report_tables.published_table(columns, reports))
  return "\n\n".join(parts) + "\n"


def notes(reports: Sequence[_Report]) -> list[str]:
  """Which figures cannot be compared, and why."""
  found = []
  if any(_of_another_tokenizer(reports)):
    found.append(
      f"{_MARK} Of another tokenizer than the first model's: figures per token (loss, perplexity,"
      " accuracy) cannot be compared with it; bits per byte can."
    )
  with_data = [report["data"] for report in reports if "data" in report]
  if len({data.get("text_sha256") for data in with_data}) > 1:
    found.append("The documents are not the same: figures of data cannot be compared.")
  if len({data["windows"] for data in with_data}) > 1:
    found.append("The windows are not the same: models see different amounts of context.")
  if len(set(_limits(reports))) > 1:
    found.append("The limits are not the same: figures are of different items.")
  return found


def _of_another_tokenizer(reports: Sequence[_Report]) -> list[bool]:
  """For each report, whether its tokenizer is known to differ from the first's."""
  first = reports[0].get("tokenizer")
  return [
    None not in (first, own := report.get("tokenizer")) and own != first for report in reports
  ]


def _limits(reports: Sequence[_Report]) -> list[int | None]:
  return [report["arguments"].get("limit") for report in reports]


def _shots(report: _Report, task: str) -> int | None:
  return report.get("tasks", {}).get("num_fewshot", {}).get(task)
