"""Documents that are there already: found over all files before anything is encoded.

  NAME.keys          of each file: keys of its documents; those that share one are the same
  NAME.removed       of each file: records that repeat one before them, in this file or another
  removed.jsonl.zst  the same to read, each with the one that is kept
  duplicates.json    how many of each subset; written last

`exact`: one key, a hash of the text after Unicode's NFC with each run of white space as one space.
`near`: a key for each of 14 bands of 8 of 112 minima of hashes of the runs of five words, without
case and punctuation (MinHash; Broder 1997; the numbers are FineWeb's). Documents that share three
quarters of these runs have a band in common with probability 0.77, nine tenths 0.9996, half 0.05;
what is alike to something alike is taken for one as well. Ids are compared as they are, or as
words.

Keys are divided by their first bits into files of their own, each of which is sorted alone: memory
is that of one of them, and 16 bytes for each pair that is found.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pathlib
import re
import shutil
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import zstandard

from gptneo_jax.data.documents import DataError, Document, every_record
from gptneo_jax.data.prepare.inputs import Inputs, Part, Settings
from gptneo_jax.data.shard_manifest import PART, write_aside

KINDS = ("none", "exact", "near")
SUMMARY = "duplicates.json"
_KEYS, _REMOVED, _LIST = ".keys", ".removed", "removed.jsonl.zst"
_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("record", "<u4"), ("subset", "<u2")])
_FOUND = np.dtype([("record", "<u4"), ("subset", "<u2"), ("file", "<u4"), ("kept", "<u4")])
_BUCKET = 1 << 23  # keys that are sorted together, at most about
_BATCH = 256  # documents whose keys are made together
_PERMUTATIONS, _BANDS, _RUN = 112, 14, 5
_WORD = re.compile(r"\w+")


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
        yield name, _read(path, _KEY)[0]["documents"]
        continue
      except DataError as error:
        if path.exists():
          say(str(error))
      yield name, _hash_file(inputs, number, path, settings.dedup)
  inputs.bad_records.log_summary()


def _hash_file(inputs: Inputs, number: int, path: pathlib.Path, kind: str) -> int:
  """Returns how many documents it has."""
  subsets: dict[str, int] = {}
  parts, batch, count, records = [np.zeros(0, _KEY)], [], 0, 0

  def finish() -> None:
    if batch:
      documents, numbers, its = zip(*batch)
      parts.append(_keys(documents, numbers, its, kind))
      batch.clear()

  # An end that no document of ids has: it says nothing of the text.
  for past, document in inputs.read(number, every_record, end_of_text=-1):
    subset = document.subset if isinstance(document, Document) else inputs.names[number]
    batch.append((document, past - 1, subsets.setdefault(subset, len(subsets))))
    count, records = count + 1, past
    if len(batch) == _BATCH:
      finish()
  finish()
  about = {"kind": kind, "subsets": list(subsets), "documents": count, "records": records}
  _write(path, np.concatenate(parts), about)
  return count


def _keys(
  documents: Sequence[Document | np.ndarray], records: Sequence[int], subsets: Sequence[int],
  kind: str,
) -> np.ndarray:  # fmt: skip
  """The keys of some documents, one after another."""
  both_NxBx2 = _near(documents) if kind == "near" else _exact(documents)
  rows_NxB = np.empty(both_NxBx2.shape[:2], _KEY)
  rows_NxB["high"], rows_NxB["low"] = both_NxBx2[..., 0], both_NxBx2[..., 1]
  rows_NxB["record"] = np.array(records)[:, None]
  rows_NxB["subset"] = np.array(subsets)[:, None]
  return rows_NxB.ravel()


def _exact(documents: Sequence[Document | np.ndarray]) -> np.ndarray:
  """uint64 N x 1 x 2."""

  def digest(document: Document | np.ndarray) -> bytes:
    if isinstance(document, Document):
      content = " ".join(unicodedata.normalize("NFC", document.text).split()).encode()
    else:
      content = document.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()

  digests = b"".join(map(digest, documents))
  return np.frombuffer(digests, "<u8").reshape(-1, 1, 2)


def _near(documents: Sequence[Document | np.ndarray]) -> np.ndarray:
  """uint64 N x _BANDS x 2."""
  try:
    rensa = importlib.import_module("rensa")
  except ImportError:
    raise DataError("--dedup near needs rensa: pip install 'gptneo_jax[prepare]'") from None
  minima_NxP = np.array(
    rensa.RMinHash.digests_from_token_sets([_runs(one) for one in documents], _PERMUTATIONS, 1),
    np.uint64,
  )
  band_NxBxR = minima_NxP.reshape(len(documents), _BANDS, -1)
  keys_NxBx2 = np.empty((*band_NxBxR.shape[:2], 2), np.uint64)
  for n, factor in enumerate((0x9E3779B97F4A7C15, 0xD1342543DE82EF95)):
    key_NxB = np.broadcast_to(np.arange(1, _BANDS + 1, dtype=np.uint64), band_NxBxR.shape[:2])
    for r in range(band_NxBxR.shape[2]):
      key_NxB = (key_NxB ^ band_NxBxR[..., r]) * np.uint64(factor)
      key_NxB = key_NxB ^ key_NxB >> np.uint64(29)
    keys_NxBx2[..., n] = key_NxB
  return keys_NxBx2


def _runs(document: Document | np.ndarray) -> list[str]:
  """Runs of five words; one that has fewer words is a run, and one without a word its text."""
  if isinstance(document, Document):
    words = _WORD.findall(unicodedata.normalize("NFC", document.text).lower())
    words = words or [f"\0{document.text}"]
  else:
    words = document.astype(str).tolist()
  ends = range(min(_RUN, len(words)), len(words) + 1)
  return list({" ".join(words[max(0, end - _RUN) : end]) for end in ends})


def find(folder: pathlib.Path, names: list[str]) -> bool:
  """Finds what is removed, if the keys of all files are there; whether it has been found.

  What was found before stays, unless some of it is damaged.
  """
  try:
    for name in names:
      _read(folder / f"{name}{_REMOVED}", _FOUND)
    if (folder / SUMMARY).exists():
      return True
  except DataError:
    pass
  try:
    total = sum(len(_read(folder / f"{name}{_KEYS}", _KEY)[1]) for name in names)
  except DataError:
    return False
  aside = pathlib.Path(tempfile.mkdtemp(prefix="duplicates.", suffix=PART, dir=folder))
  try:
    pairs = [_pairs(bucket) for bucket in _divide(folder, names, total, aside)]
    _write_found(folder, names, aside, np.concatenate([np.zeros((0, 2), np.int64), *pairs]))
  finally:
    shutil.rmtree(aside)
  return True


def _divide(
  folder: pathlib.Path, names: list[str], total: int, aside: pathlib.Path
) -> Iterator[np.ndarray]:
  """The keys of all files, each with its document's number, those that may be equal together."""
  bits = max(0, (-(-total // _BUCKET) - 1).bit_length())
  row = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<i8")])
  before = 0  # records of the files before
  for name in names:
    about, keys = _read(folder / f"{name}{_KEYS}", _KEY)
    rows = np.empty(len(keys), row)
    rows["high"], rows["low"] = keys["high"], keys["low"]
    rows["document"] = before + keys["record"].astype(np.int64)
    before += about["records"]
    bucket = rows["high"] >> np.uint64(64 - bits) if bits else np.zeros(len(rows), np.uint64)
    for one in np.unique(bucket):
      with open(aside / f"{one}.bucket", "ab") as file:
        rows[bucket == one].tofile(file)
  for path in sorted(aside.glob("*.bucket")):
    yield np.fromfile(path, row)


def _pairs(rows: np.ndarray) -> np.ndarray:
  """int64 pairs x 2 of documents: each but the first that has a key, and that one."""
  rows = rows[np.lexsort((rows["document"], rows["low"], rows["high"]))]
  again = np.zeros(len(rows), bool)
  again[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
  first = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
  both = np.stack([rows["document"][again], rows["document"][first[again]]], axis=1)
  return np.unique(both[both[:, 0] != both[:, 1]], axis=0)


def _kept(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The documents that are removed, in order, and of each the one that is kept: the first of all
  that pairs connect."""
  from scipy.sparse import coo_array
  from scipy.sparse.csgraph import connected_components

  documents, places = np.unique(pairs, return_inverse=True)
  places = places.reshape(pairs.shape)
  graph = coo_array((np.ones(len(pairs), bool), places.T), shape=(len(documents),) * 2)
  _, group = connected_components(graph, directed=False)
  _, first = np.unique(group, return_index=True)
  kept = documents[first[group]]
  return documents[documents != kept], kept[documents != kept]


def _write_found(
  folder: pathlib.Path, names: list[str], aside: pathlib.Path, pairs: np.ndarray
) -> None:
  removed, kept = _kept(pairs)
  heads = [_read(folder / f"{name}{_KEYS}", _KEY)[0] for name in names]
  starts = np.concatenate([[0], np.cumsum([about["records"] for about in heads])])
  kept_file = np.searchsorted(starts, kept, "right") - 1
  counts: dict[str, dict[str, int]] = {}
  with open(aside / _LIST, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
    for number, name in enumerate(names):
      about, keys = _read(folder / f"{name}{_KEYS}", _KEY)
      keys = keys[np.unique(keys["record"], return_index=True)[1]]  # one of each document
      mine = slice(*np.searchsorted(removed, starts[number : number + 2]))
      found = np.empty(mine.stop - mine.start, _FOUND)
      found["record"], found["file"] = removed[mine] - starts[number], kept_file[mine]
      found["kept"] = kept[mine] - starts[kept_file[mine]]
      found["subset"] = keys["subset"][np.searchsorted(keys["record"], found["record"])]
      _write(folder / f"{name}{_REMOVED}", found, {})
      for subset, its in enumerate(about["subsets"]):
        both = counts.setdefault(its, {"documents": 0, "removed": 0})
        both["documents"] += int((keys["subset"] == subset).sum())
        both["removed"] += int((found["subset"] == subset).sum())
      for record, subset, of, first in found.tolist():
        line = {
          "file": name, "record": record, "subset": about["subsets"][subset],
          "kept_file": names[of], "kept_record": first,
        }  # fmt: skip
        writer.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
  (aside / _LIST).replace(folder / _LIST)
  write_aside(folder / SUMMARY, json.dumps(counts, indent=1, sort_keys=True).encode())


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
