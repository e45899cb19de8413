"""Training, validation and test records: by file, or held out of one by a hash."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptneo_jax.data import BadRecords, DataConfig, DataError
from gptneo_jax.data.sources import held_out_shares
from gptneo_jax.data.splits import Shares, hash_position, with_validation
from gptneo_jax.examples.columns import Role, by_role, has_header
from gptneo_jax.examples.records import Record, read_records

Key = Callable[[Record], str]
_Pair = tuple[Record, Record]  # of which the second comes first, or is the one of training


class Splits(NamedTuple):
  """Records of each split, and what was noticed about them, a line each."""

  train: list[Record]
  validation: list[Record]
  test: list[Record]
  notes: list[str]


def load_splits(config: DataConfig, roles: Sequence[Role], key: Key) -> Splits:
  """Reads the records of a config, names their fields by role, and looks for copies.

  key: what must not be on both sides of a split. Copies stay where they are, and are reported;
  with a fraction they are on one side.

  Raises:
    DataError: with file and line; or a split that is asked for would be empty, or nothing is left
      to train on.
  """
  if config.source in ("stdlib", "mixture"):
    raise DataError(
      f"data.source is '{config.source}', which has no labelled examples; 'auto' reads the files of"
      " data.path, several with commas"
    )
  bad_records = BadRecords(config.on_bad_record)
  files = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
  read = {name: _read(config, path, roles, bad_records) for name, path in files.items() if path}
  skipped = f"skipped in the data: {bad_records}" if bad_records.counts else ""
  for name, records in read.items():
    if not records:
      raise DataError(f"{files[name]} holds no record" + (skipped and f" ({skipped})"))
  shares = held_out_shares(config)
  enlarged = shares
  if shares.validation:
    enlarged = with_validation(shares, map(key, read["train"]))
  train, validation, test = split(read["train"], enlarged, key)
  if not train or (shares.validation and not validation):
    raise DataError(_too_few(config, shares, len(read["train"])))
  splits = Splits(train, read.get("validation", validation), read.get("test", test), [])
  notes = [skipped] if skipped else []
  if enlarged != shares:
    count = f"{len(validation)} record{'s'[: len(validation) != 1]}"
    notes.append(
      f"data.validation_fraction={shares.validation:g} gives no record by its hash: the {count} of"
      " the smallest hashes validate"
    )
  if shares.test and not test:
    notes.append(f"data.test_fraction={shares.test:g} gives no test record")
  return splits._replace(notes=[*notes, *_copies(splits, roles, key)])


def _too_few(config: DataConfig, shares: Shares, number: int) -> str:
  held = [f"data.{name}_fraction={share:g}" for name, share in shares._asdict().items() if share]
  records = f"{number} record{'s'[: number != 1]}"
  return (
    f"{config.path}: {' and '.join(held)} of {records}, of which copies count once, leave no"
    " training or no validation record; data.validation_path takes validation from another file,"
    " and data.validation_fraction=0 goes without"
  )


def split(
  records: Sequence[Record], shares: Shares, key: Key
) -> tuple[list[Record], list[Record], list[Record]]:
  """Train, validation, test: by a hash of the key, so that equal keys are on one side."""
  positions = [hash_position(key(record)) for record in records]
  parts: list[list[Record]] = []
  for name in ("train", "validation", "test"):
    low, high = shares.bounds(name)
    parts.append([record for record, at in zip(records, positions) if low <= at < high])
  return parts[0], parts[1], parts[2]


def _read(
  config: DataConfig, path: str, roles: Sequence[Role], bad_records: BadRecords
) -> list[Record]:
  records = read_records(
    path,
    header=has_header(config.columns),
    source=config.source,
    config_name=config.datasets_config,
    bad_records=bad_records,
  )
  return by_role(records, roles, config.columns, bad_records=bad_records)


def _copies(splits: Splits, roles: Sequence[Role], key: Key) -> list[str]:
  """Lines about records that are there twice: in training, and on both sides."""
  inputs = [role.name for role in roles if role.needed == "always"]

  def identity(record: Record) -> str:
    """All that the model is to see: of a question with a context the key alone may be less."""
    return key(record) + _text(record, inputs)

  def said(record: Record) -> str:
    """What stands of it in all roles, the labels' too."""
    return _text(record, [role.name for role in roles if role.name != "id"])

  by_key: dict[str, Record] = {}
  by_identity: dict[str, Record] = {}
  repeated: list[_Pair] = []
  for record in splits.train:
    by_key.setdefault(key(record), record)
    first = by_identity.setdefault(identity(record), record)
    if first is not record:
      repeated.append((record, first))
  what = f"{len(repeated)} of {len(splits.train)} training records repeat an earlier one"
  notes = _note(what, repeated, repeated, said)
  for name in ("validation", "test"):
    records = getattr(splits, name)
    shared = [(record, by_key[key(record)]) for record in records if key(record) in by_key]
    same = [(record, by_identity.get(identity(record))) for record in records]
    notes += _note(
      f"{len(shared)} of {len(records)} {name} records have the text, prompt or context of a"
      " training record",
      shared,
      [(record, first) for record, first in same if first],
      said,
    )
  return notes


def _note(what: str, pairs: Sequence[_Pair], same: Sequence[_Pair], said: Key) -> list[str]:
  """A line about pairs, with the first as an example, and those of `same` that are answered in two
  ways."""
  if not pairs:
    return []
  line = f"{what}, the first: {_locations(pairs[0])}"
  if others := [pair for pair in same if said(pair[0]) != said(pair[1])]:
    line += f"; {len(others)} with another label or answer, the first: {_locations(others[0])}"
  return [line]


def _locations(pair: _Pair) -> str:
  return f"{pair[0].location}, as {pair[1].location}"


def _text(record: Record, roles: Sequence[str]) -> str:
  return json.dumps([record.fields.get(role) for role in roles], sort_keys=True, default=str)
