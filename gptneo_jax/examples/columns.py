"""Which field of a record is what: its text, its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from gptneo_jax.data import BadRecords, DataError, file_formats, tables
from gptneo_jax.data.jsonl import field_of
from gptneo_jax.errors import did_you_mean
from gptneo_jax.examples.records import Record

_SHOWN = 12  # names of fields in a message
_LONGEST = 40  # characters of each: in a table without header it may be a text


@dataclasses.dataclass(frozen=True)
class Role:
  """Something that a record holds.

  Attributes:
    name: as data.columns calls it.
    aliases: fields that are taken where data.columns does not say, the first that is there.
    needed: 'always'; 'training' where only labelled records hold it; 'some' where some labelled
      records of a file must; 'never'.

  A field is named as `a.b` if it is b of the field a, and 'a+b' is the list of a and b.
  """

  name: str
  aliases: tuple[str, ...] = ()
  needed: str = "always"


def has_header(columns: str) -> bool:
  """Whether a table has a first row of names: unless all fields of data.columns are numbers."""
  fields = _fields(columns)
  return not fields or not all(map(str.isdecimal, fields))


def occur(columns: str, records: Iterable[Record]) -> bool:
  """Whether any of the records has any field of data.columns."""
  fields = _fields(columns)
  return any(field_of(one.fields, name) is not None for one in records for name in fields)


def parse(columns: str, roles: Sequence[Role]) -> dict[str, str]:
  """Role to field, of data.columns 'role=field,role=field'. Raises DataError for unknown roles."""
  names = [role.name for role in roles]
  pairs = _pairs(columns)
  for name in pairs:
    if name not in names:
      raise DataError(
        f"data.columns: there is no {name!r} here{did_you_mean(name, names)}; it names the fields"
        f" of {', '.join(names)}"
      )
  return pairs


def _fields(columns: str) -> list[str]:
  return [name for field in _pairs(columns).values() for name in field.split("+")]


def _pairs(columns: str) -> dict[str, str]:
  pairs: dict[str, str] = {}
  for part in filter(None, map(str.strip, columns.split(","))):
    role, equals, field = (side.strip() for side in part.partition("="))
    if not (role and equals and field):
      raise DataError(f"data.columns: {part!r} is not ROLE=FIELD")
    if role in pairs:
      raise DataError(f"data.columns: {role!r} is given twice")
    pairs[role] = field
  return pairs


def by_role(
  records: Sequence[Record],
  roles: Sequence[Role],
  columns: str,
  *,
  labelled: bool = True,
  bad_records: BadRecords | None = None,
) -> list[Record]:
  """The records with their fields named by role; others keep their names.

  Which field is a role's is the same for all records of a file. One that is absent or null in a
  record is left out.

  Args:
    columns: data.columns.
    labelled: whether what is needed in training is needed here.
    bad_records: what to do about records that lack something; None stops at the first one.

  Raises:
    DataError: no record of a file has a field that is needed, naming those that there are; or a
      single one lacks it, with file and line.
  """
  bad_records = bad_records or BadRecords("stop")
  given = parse(columns, roles)
  files: dict[str, list[Record]] = {}
  for record in records:
    files.setdefault(record.file, []).append(record)
  chosen = {file: _choose(file, its, roles, given, labelled) for file, its in files.items()}
  names = [role.name for role in roles]
  needed = [role.name for role in roles if role.needed != "some" and _is_needed(role, labelled)]
  found = []
  for record in records:
    fields = _renamed(record, chosen[record.file], names)
    lacking = next((name for name in needed if name not in fields), None)
    if lacking is None:
      found.append(dataclasses.replace(record, fields=fields))
    else:
      reason = f"no field {chosen[record.file][lacking]!r}"
      bad_records.add(record.location, reason, f"it has {_listed(record.fields)}")
  return found


def _renamed(record: Record, chosen: dict[str, str], roles: Sequence[str]) -> dict[str, Any]:
  """Its fields by role, of which `chosen` says the field, and the others as they are."""
  taken = {*roles, *(name for field in chosen.values() for name in (field, *field.split("+")))}
  fields = {name: value for name, value in record.fields.items() if name not in taken}
  for role, field in chosen.items():
    if (value := _value(record, field)) is not None:
      fields[role] = value
  return fields


def _is_needed(role: Role, labelled: bool) -> bool:
  return role.needed == "always" or (role.needed in ("training", "some") and labelled)


def _value(record: Record, field: str) -> Any:
  """None if the record has no such field."""
  value = field_of(record.fields, field)
  if value is None and "+" in field:
    values = [field_of(record.fields, name) for name in field.split("+")]
    while values and values[-1] is None:  # a question with fewer choices
      values.pop()
    return None if None in values else values or None
  return value


def _choose(
  file: str, records: Sequence[Record], roles: Sequence[Role], given: dict[str, str], labelled: bool
) -> dict[str, str]:
  """Role -> field of the records of one file."""
  there: dict[str, None] = {}  # the fields of all records, in their order
  for record in records:
    there.update(dict.fromkeys(record.fields))
  chosen = {}
  for role in roles:
    explicit = given.get(role.name)
    fields = (explicit,) if explicit else (role.name, *role.aliases)
    field = _first(fields, there, records) or ("" if explicit else _folded(fields, there, records))
    if field:
      chosen[role.name] = field
    elif explicit or _is_needed(role, labelled):
      raise DataError(_missing(file, role, fields, bool(explicit), there))
  return chosen


def _first(fields: Iterable[str], there: Iterable[str], records: Sequence[Record]) -> str:
  """The first of the fields that any record has, else ''."""
  for field in fields:
    heads = {name.partition(".")[0] for name in field.split("+")}
    possible = field in there or heads <= set(there)
    if possible and any(_value(record, field) is not None for record in records):
      return field
  return ""


def _folded(fields: Iterable[str], there: Iterable[str], records: Sequence[Record]) -> str:
  """The same, of names that differ in upper and lower case, '-', '_' and spaces only."""
  spelt = {_fold(name): name for name in there}
  return _first([spelt[_fold(field)] for field in fields if _fold(field) in spelt], there, records)


def _fold(name: str) -> str:
  return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _missing(
  file: str, role: Role, fields: Sequence[str], explicit: bool, there: Iterable[str]
) -> str:
  names = list(there)
  if null := next((field for field in fields if field in names), ""):
    return f"{file}: the field {null!r} is null in every record"
  what = f"no column {fields[0]!r}"
  if explicit:
    what += f", which data.columns gives as {role.name}"
  elif len(fields) > 1:
    what += f" (or {', '.join(fields[1:])})"
  near = next(filter(None, (did_you_mean(field, names) for field in fields)), "")
  advice = "" if explicit else f"; data.columns={role.name}=FIELD says which it is"
  if file_formats.ending(file) in tables.ENDINGS and not all(map(str.isdecimal, names)):
    advice += "; of a table without header the fields are numbers from 0"
  return f"{file}: {what}; there are {_listed(names)}{near}{advice}"


def _listed(names: Iterable[str]) -> str:
  shown = [repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…") for name in names]
  more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
  return (", ".join(shown[:_SHOWN]) or "no fields") + more
