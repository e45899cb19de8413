"""Files of several kinds read as one source, each by its ending, or what it begins with."""

import codecs
import re
from collections.abc import Iterator

from gptneo_jax.data import tables
from gptneo_jax.data.documents import BadRecords, Cursor, Document, Wanted
from gptneo_jax.data.file_formats import (
  UnreadableFileError,
  ending,
  first_bytes,
  is_parquet,
  utf8_chunks,
)
from gptneo_jax.data.files import match_files, opened
from gptneo_jax.data.jsonl import JsonLines
from gptneo_jax.data.tables import Tables
from gptneo_jax.data.text_files import TextFiles

RECORDS = (".jsonl", ".ndjson", ".json", ".parquet")
_OBJECT = re.compile(rb'\s*(\[\s*)?\{\s*"')  # JSON begins so, and hardly anything else


class AutoFiles:
  """JSON, JSON lines, parquet, CSV, TSV and text, in the order of their names.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(
    self, path: str, name: str, bad_records: BadRecords, *, text_key: str, document: str = "file"
  ):
    """text_key: of records and rows; document: of text. Raises DataError if nothing is there."""
    fs, self.shards = match_files(path, folders=True)
    kinds = [_kind(fs, file, bad_records) for file in self.shards]
    files = {
      kind: [file for file, its in zip(self.shards, kinds) if its == kind] for kind in set(kinds)
    }
    sources = {
      "records": lambda files: JsonLines(fs, files, name, text_key, bad_records),
      "table": lambda files: Tables(fs, files, name, text_key, bad_records),
      "text": lambda files: TextFiles(fs, files, name, bad_records, document),
    }
    self._sources = {kind: sources[kind](files[kind]) for kind in files}
    self._places = [(kind, files[kind].index(file)) for file, kind in zip(self.shards, kinds)]

  def size(self, shard: int) -> int:
    """Bytes of a file, 0 if not known."""
    kind, number = self._places[shard]
    return self._sources[kind].size(number)

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """As JsonLines.read."""
    kind, number = self._places[shard]
    return self._sources[kind].read(number, start, wanted)


def _kind(fs, path: str, bad_records: BadRecords) -> str:
  """'records', 'table' or 'text'. Only a file without ending is looked into."""
  last = ending(path)
  if last in tables.ENDINGS:
    return "table"
  if last in RECORDS:
    return "records"
  if not last:
    with opened(fs, path, BadRecords("skip", quiet=True)) as file:
      if file is not None and _holds_objects(file, path):
        return "records"
  return "text"


def _holds_objects(file, path: str) -> bool:
  if is_parquet(first_bytes(file)):
    return True
  try:
    beginning = next(utf8_chunks(file, path, 0)[1], b"")
  except UnreadableFileError:  # said when it is read
    return False
  return bool(_OBJECT.match(beginning.removeprefix(codecs.BOM_UTF8)))
