"""Reports of evaluations: written as JSON, as a table and as a picture, and read again."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptneo_jax.errors import UserError
from gptneo_jax.evals import report_pictures, report_tables
from gptneo_jax.evals.atomic_file import write_atomically

_KEYS = {"arguments", "checkpoint", "model", "parameters", "results", "versions"}  # in each report


def write(report: Mapping[str, Any], path: str) -> list[str]:
  """Writes FILE.json, FILE.md and, for figures of documents, FILE.png; returns notes to print.

  Numbers that are not finite, for which JSON has no notation, are null (see `not_finite`). Raises
  UserError if a file cannot be written.
  """
  report = finite(report)
  target = pathlib.Path(path)
  write_files(target, report, report_tables.markdown(report))
  if "data" not in report:
    return []
  return report_pictures.draw(report_tables.name(report), report, target.with_suffix(".png"))


def write_files(target: pathlib.Path, content: Mapping[str, Any], text: str) -> None:
  """Writes `content` to FILE.json and `text` to FILE.md. Raises UserError if it cannot."""
  content_json = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
  write_atomically(target, content_json + "\n")
  write_atomically(target.with_suffix(".md"), text)


def write_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path) -> None:
  """Writes items of harness tasks with their answers, one JSON object a line."""
  with path.open("w", encoding="utf-8") as file:
    for task, rows in samples.items():
      for row in rows:
        plain = json.loads(json.dumps({"task": task, **row}, default=str))
        file.write(json.dumps(finite(plain), allow_nan=False) + "\n")


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


def not_finite(value: Any, place: str = "") -> Iterator[str]:
  """The places of numbers that are NaN or infinite, such as 'results.piqa.acc'."""
  if isinstance(value, float) and not math.isfinite(value):
    yield place
  elif isinstance(value, Mapping | list | tuple):
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, part in entries:
      yield from not_finite(part, f"{place}.{key}" if place else str(key))


def finite(value: Any) -> Any:
  """A copy with None in place of NaN and infinity."""
  if isinstance(value, Mapping):
    return {key: finite(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
