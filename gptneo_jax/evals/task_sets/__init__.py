"""Named sets of harness tasks; the YAML files in this folder say what is in them."""

from __future__ import annotations

import importlib.resources
from typing import Any, NamedTuple

import yaml

PAPER, QUICK = "gptneo_paper", "quick"


class TaskMetric(NamedTuple):
  """A harness task, and the metric of it that fills a column."""

  task: str
  metric: str


class Column(NamedTuple):
  """A column of the published table. local, hub: the task on local data, and the harness' own.

  published: the harness task that the published numbers are from; None for GPT-Neo's own
    evaluator.
  """

  column: str
  local: TaskMetric | None
  hub: TaskMetric | None
  published: str | None


def read(name: str) -> Any:
  """The content of NAME.yaml in this folder."""
  file = importlib.resources.files(__name__).joinpath(f"{name}.yaml")
  return yaml.safe_load(file.read_text(encoding="utf-8"))


def paper_columns() -> list[Column]:
  return [
    Column(
      column=row["column"],
      local=TaskMetric(**row["local"]) if "local" in row else None,
      hub=TaskMetric(**row["hub"]) if "hub" in row else None,
      published=row["published"],
    )
    for row in read(PAPER)
  ]


def quick_limits() -> dict[str, int]:
  """Tasks of the quick set, and the largest number of items of each."""
  return read(QUICK)
