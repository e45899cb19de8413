"""Documents that are there already: found over all files before anything is encoded.

  NAME.keys          of each file: a 128-bit hash of every document's text, its record and subset
  NAME.removed       of each file: records that repeat one before them, in this file or another
  removed.jsonl.zst  the same to read, each with the one that is kept
  duplicates.json    how many of each subset; written last

Two texts are the same if they are after Unicode's NFC with each run of white space as one space;
ids are compared as they are. Memory is bounded: keys are divided by their first bits into files of
their own, each of which is sorted alone.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zstandard

from gptneo_jax.data.documents import DataError, Document, every_record
from gptneo_jax.data.prepare.inputs import Inputs, Part, Settings
from gptneo_jax.data.token_shards import PART, write_aside

SUMMARY = "duplicates.json"
_KEYS, _REMOVED, _LIST = ".keys", ".removed", "removed.jsonl.zst"
_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("record", "<u4"), ("subset", "<u2")])
_FOUND = np.dtype([("record", "<u4"), ("subset", "<u2"), ("file", "<u4"), ("kept", "<u4")])
_BUCKET = 1 << 23  # keys that are sorted together, at most about


def hash_files(
  settings: Settings, folder: pathlib.Path, part: Part, say: Callable[[str], object]
) -> Iterator[tuple[str, int]]:
  """Makes the keys of a part of the files; yields (name, records) of each, the old ones too."""
  inputs = Inputs(settings)
  for number, name in enumerate(inputs.names):
    first, step = part.share(number, len(inputs.names))
    if step and first == 0:  # a file's keys are one part's work
      path = folder / f"{name}{_KEYS}"
      try:
        yield name, len(_read(path, _KEY)[1])
        continue
      except DataError as error:
        if path.exists():
          say(str(error))
      yield name, _hash_file(inputs, number, path)
  inputs.bad_records.log_summary()


def _hash_file(inputs: Inputs, number: int, path: pathlib.Path) -> int:
  subsets: dict[str, int] = {}
  parts, rows = [np.zeros(0, _KEY)], []
  # An end that no document of ids has: it says nothing of the text.
  for past, document in inputs.read(number, every_record, end_of_text=-1):
    subset = document.subset if isinstance(document, Document) else inputs.names[number]
    rows.append((*_hash(document), past - 1, subsets.setdefault(subset, len(subsets))))
    if len(rows) == 1 << 16:
      parts.append(np.array(rows, _KEY))
      rows = []
  keys = np.concatenate([*parts, np.array(rows, _KEY)])
  _write(path, keys, {"subsets": list(subsets)})
  return len(keys)


def _hash(document: Document | np.ndarray) -> tuple[int, int]:
  if isinstance(document, Document):
    content = " ".join(unicodedata.normalize("NFC", document.text).split()).encode()
  else:
    content = document.tobytes()
  digest = hashlib.blake2b(content, digest_size=16).digest()
  return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def find(folder: pathlib.Path, names: list[str]) -> bool:
  """Finds what is removed, if the keys of all files are there; whether it has been found."""
  if (folder / SUMMARY).exists():
    return True
  try:
    total = sum(len(_read(folder / f"{name}{_KEYS}", _KEY)[1]) for name in names)
  except DataError:
    return False
  aside = pathlib.Path(tempfile.mkdtemp(prefix="duplicates.", suffix=PART, dir=folder))
  try:
    for bucket in _divide(folder, names, total, aside):
      _find_in(bucket, aside)
    _write_found(folder, names, aside)
  finally:
    shutil.rmtree(aside)
  return True


def _divide(
  folder: pathlib.Path, names: list[str], total: int, aside: pathlib.Path
) -> Iterator[np.ndarray]:
  """The keys of all files with their files' numbers, those that may be equal together."""
  bits = max(0, (-(-total // _BUCKET) - 1).bit_length())
  row = np.dtype([*_KEY.descr, ("of", "<u4")])
  for number, name in enumerate(names):
    keys = _read(folder / f"{name}{_KEYS}", _KEY)[1]
    rows = np.empty(len(keys), row)
    for field in _KEY.fields or ():
      rows[field] = keys[field]
    rows["of"] = number
    bucket = rows["high"] >> np.uint64(64 - bits) if bits else np.zeros(len(rows), np.uint64)
    for one in np.unique(bucket):
      _append(aside / f"{one}.bucket", rows[bucket == one])
  for path in sorted(aside.glob("*.bucket")):
    yield np.fromfile(path, row)


def _write_found(folder: pathlib.Path, names: list[str], aside: pathlib.Path) -> None:
  counts: dict[str, dict[str, int]] = {}
  with open(aside / _LIST, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
    for number, name in enumerate(names):
      about, keys = _read(folder / f"{name}{_KEYS}", _KEY)
      path = aside / f"{number}{_REMOVED}"
      found = np.fromfile(path, _FOUND) if path.exists() else np.zeros(0, _FOUND)
      found = np.sort(found, order="record")
      _write(folder / f"{name}{_REMOVED}", found, {})
      for subset, its in enumerate(about["subsets"]):
        both = counts.setdefault(its, {"documents": 0, "removed": 0})
        both["documents"] += int((keys["subset"] == subset).sum())
        both["removed"] += int((found["subset"] == subset).sum())
      for record, subset, kept_file, kept in found.tolist():
        line = {
          "file": name, "record": record, "subset": about["subsets"][subset],
          "kept_file": names[kept_file], "kept_record": kept,
        }  # fmt: skip
        writer.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
  (aside / _LIST).replace(folder / _LIST)
  write_aside(folder / SUMMARY, json.dumps(counts, indent=1, sort_keys=True).encode())


def _find_in(rows: np.ndarray, aside: pathlib.Path) -> None:
  """Of rows with all that equal them: each but the first of its kind, to the list of its file."""
  rows = rows[np.lexsort((rows["record"], rows["of"], rows["low"], rows["high"]))]
  again = np.zeros(len(rows), bool)
  again[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
  first = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
  removed, kept = rows[again], rows[first[again]]
  found = np.empty(len(removed), _FOUND)
  found["record"], found["subset"] = removed["record"], removed["subset"]
  found["file"], found["kept"] = kept["of"], kept["record"]
  for number in np.unique(removed["of"]):
    _append(aside / f"{number}{_REMOVED}", found[removed["of"] == number])


def removed_records(folder: pathlib.Path, name: str) -> np.ndarray:
  """Which records of a file are removed, bool; those beyond its end are not."""
  found = _read(folder / f"{name}{_REMOVED}", _FOUND)[1]["record"]
  marked = np.zeros(int(found[-1]) + 1 if len(found) else 0, bool)  # they are in order
  marked[found] = True
  return marked


def summary(folder: pathlib.Path) -> dict[str, dict[str, int]]:
  """Documents and removed ones of each subset; {} if nothing was looked for."""
  path = folder / SUMMARY
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# --- files: a line of JSON, and an array ----------------------------------------------------------


def _write(path: pathlib.Path, array: np.ndarray, about: dict[str, Any]) -> None:
  content = array.tobytes()
  head = json.dumps({**about, "count": len(array), "checksum": zlib.crc32(content)}).encode()
  write_aside(path, head + b"\n" + content)


def _read(path: pathlib.Path, dtype: np.dtype) -> tuple[dict[str, Any], np.ndarray]:
  """Raises DataError if it is not there or damaged."""
  try:
    head, _, content = path.read_bytes().partition(b"\n")
    about = json.loads(head)
    if about["checksum"] != zlib.crc32(content):
      raise ValueError("its checksum differs")
    return about, np.frombuffer(content, dtype)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise DataError(f"{path}: damaged: {error}") from None


def _append(path: pathlib.Path, rows: np.ndarray) -> None:
  with open(path, "ab") as file:
    rows.tofile(file)
