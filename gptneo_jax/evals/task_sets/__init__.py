"""Named sets of tasks; the YAML files beside this one say what is in them."""

from __future__ import annotations

import importlib.resources
from typing import Any, NamedTuple

import yaml

PAPER, QUICK = "gptneo_paper", "quick"


class Choice(NamedTuple):
  """A task, and its metric that a column shows."""

  task: str
  metric: str


class Column(NamedTuple):
  """A column of the published table. local, hub: the task on local data, and the harness' own.

  published: the harness' task that the published numbers are from, None for GPT-Neo's own
    evaluator.
  """

  column: str
  local: Choice | None
  hub: Choice | None
  published: str | None


def read(name: str) -> Any:
  """What NAME.yaml of this folder says."""
  file = importlib.resources.files(__name__).joinpath(f"{name}.yaml")
  return yaml.safe_load(file.read_text(encoding="utf-8"))


def paper_columns() -> list[Column]:
  return [
    Column(
      row["column"],
      Choice(**row["local"]) if "local" in row else None,
      Choice(**row["hub"]) if "hub" in row else None,
      row["published"],
    )
    for row in read(PAPER)
  ]


def quick_limits() -> dict[str, int]:
  """Tasks of the quick set, and how many items of each are taken at most."""
  return read(QUICK)
