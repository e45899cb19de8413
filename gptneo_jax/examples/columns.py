"""Which field of a record is what: its text, its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gptneo_jax.data import DataError
from gptneo_jax.examples.records import Record


@dataclasses.dataclass(frozen=True)
class Role:
  """Something that a record holds.

  Attributes:
    name: as data.columns calls it.
    aliases: fields that are taken where data.columns does not say, the first that is there.
    needed: 'always'; 'training' where only labelled records hold it; 'never'.
  """

  name: str
  aliases: tuple[str, ...] = ()
  needed: str = "always"


def parse(columns: str) -> dict[str, str]:
  """Role to field, of data.columns 'role=field,role=field'."""
  return dict(part.split("=", 1) for part in columns.split(",") if part)


def by_role(
  records: Sequence[Record], roles: Sequence[Role], columns: str, *, labelled: bool = True
) -> list[Record]:
  """The records with their fields named by role; others keep their names.

  Raises DataError for one that is not there.
  """
  given, found = parse(columns), []
  for record in records:
    fields, taken = {}, set()
    for role in roles:
      names = (given[role.name],) if role.name in given else (role.name, *role.aliases)
      name = next((name for name in names if name in record.fields), None)
      if name is not None:
        fields[role.name] = record.fields[name]
        taken.add(name)
      elif role.needed == "always" or (role.needed == "training" and labelled):
        raise DataError(f"{record.location}: no field {names[0]!r}")
    others = {name: value for name, value in record.fields.items() if name not in taken}
    found.append(dataclasses.replace(record, fields=others | fields))
  return found
