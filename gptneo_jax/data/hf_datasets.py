"""Sources read by the `datasets` library: data sets of the hub, local folders, saved data sets."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptneo_jax.data.documents import BadRecords, Cursor, DataError, Document, Wanted
from gptneo_jax.data.files import file_system
from gptneo_jax.data.hub_revision import commit_of_dataset, split_revision
from gptneo_jax.data.jsonl import document_of
from gptneo_jax.errors import first_line


class HFDataset:
  """Records of one split: streamed, or by random access from a folder that `save_to_disk` wrote.

  Attributes:
    shards: names of its shards.
  """

  def __init__(
    self, path: str, config_name: str, name: str, text_key: str, bad_records: BadRecords
  ):
    import datasets

    path, _, split = path.partition("#")
    split = split or "train"
    local = os.path.expanduser(path)
    try:
      if _is_saved(local):
        data = datasets.load_from_disk(local)
        if isinstance(data, datasets.DatasetDict):
          data = data[split]
      else:
        files = None
        if os.path.isfile(local):  # one file of a folder; the library goes by its ending
          local, file = os.path.split(os.path.abspath(local))
          files = {split: glob.escape(file)}
        name_or_folder = local if os.path.exists(local) else path
        hub_id, revision = split_revision(name_or_folder)
        data = datasets.load_dataset(
          hub_id, config_name or None, data_files=files, split=split, streaming=True,
          revision=commit_of_dataset(name_or_folder) or revision,
        )  # fmt: skip
    except Exception as error:  # the library's back ends raise errors of their own
      raise DataError(f"{path}#{split}: cannot be opened: {first_line(error)}") from error
    self._data = data
    number = data.num_shards if isinstance(data, datasets.IterableDataset) else 1
    self.shards = [f"{path}#{split}[{shard}]" for shard in range(number)]
    self._name, self._text_key, self._bad_records = name, text_key, bad_records

  def size(self, shard: int) -> int:
    """0: the shard is not a file."""
    return 0

  def read(self, shard: int, start: Cursor, wanted: Wanted) -> Iterator[tuple[Cursor, Document]]:
    """Documents of one shard from a cursor (record, 0) on, as JsonLines.read."""
    for number, record in self.records(shard, start[0], wanted):
      location = f"{self.shards[shard]}:{number + 1}"
      document = document_of(record, self._text_key, self._name, location, self._bad_records)
      if document is not None:
        yield (number + 1, 0), document

  def records(self, shard: int, start: int, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    """(number, record) of one shard from record `start` on."""
    import datasets

    number = start
    try:
      if isinstance(self._data, datasets.IterableDataset):
        data = self._data.shard(num_shards=len(self.shards), index=shard).skip(start)
        for number, record in enumerate(data, start):
          if wanted(number):
            yield number, record
      else:
        for number in filter(wanted, range(start, len(self._data))):
          yield number, self._data[number]
    except Exception as error:  # network or damaged file: the next record is unknown
      location = f"{self.shards[shard]}:{number + 1}"
      raise DataError(f"{location}: reading stopped near here: {first_line(error)}") from error

  def with_label_names(self, record: dict[str, Any]) -> dict[str, Any]:
    """The record, in which labels that the data set stores as numbers have their names."""
    return _with_names(record, self._data.features or {})


def label_names_of(file: Any) -> Callable[[Any], Any]:
  """The same of the rows of a parquet file that the library wrote, such as the hub's; else nothing.

  file: open for reading bytes; its position is the start again.
  """
  from pyarrow import ArrowException, parquet

  try:
    schema = parquet.read_schema(file)
  except ArrowException:  # said when the rows are read
    return lambda record: record
  finally:
    file.seek(0)
  if b"huggingface" not in (schema.metadata or {}):
    return lambda record: record
  import datasets

  features = datasets.Features.from_arrow_schema(schema)
  return lambda record: _with_names(record, features)


def _with_names(record: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
  return {name: _named(value, features.get(name)) for name, value in record.items()}


def _named(value: Any, feature: Any) -> Any:
  if hasattr(feature, "int2str") and isinstance(value, int):
    return feature.int2str(value) if value >= 0 else None  # -1: not labelled
  if isinstance(value, list) and (inner := getattr(feature, "feature", None)) is not None:
    return [_named(element, inner) for element in value]
  return value


def check_dataset(path: str) -> None:
  """Raises DataError if `path` can only be a local folder or file and does not exist."""
  path = path.partition("#")[0]
  if path.startswith(("/", ".", "~")) and not os.path.exists(os.path.expanduser(path)):
    raise DataError(f"{path}: no such folder or file")
  if "://" in path:
    file_system(path)


def _is_saved(folder: str) -> bool:
  return any(
    os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json")
  )
