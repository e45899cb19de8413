"""Records of a labelled file: rows of a table, or JSON objects."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from typing import Any

from gptneo_jax.data import DataError


@dataclasses.dataclass(frozen=True)
class Record:
  """One record.

  Attributes:
    fields: its values by the file's names for them; '0', '1', … in a table without a header.
    location: 'file:line', for messages.
  """

  fields: dict[str, Any]
  location: str


def read_records(path: str, *, header: bool = True) -> list[Record]:
  """All records of a file. Raises DataError naming file and line."""
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise DataError(f"{path}: no such file")
  text = file.read_text(encoding="utf-8-sig")
  if file.suffix in (".csv", ".tsv"):
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ","))
    names = rows.pop(0) if header else list(map(str, range(len(rows[0]))))
    return [Record(dict(zip(names, row)), f"{path}:{n}") for n, row in enumerate(rows, 1 + header)]
  if file.suffix == ".jsonl":
    return [Record(json.loads(line), f"{path}:{n}") for n, line in enumerate(text.splitlines(), 1)]
  return [Record(fields, f"{path}:{n}") for n, fields in enumerate(json.loads(text), 1)]
