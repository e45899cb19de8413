"""The settings of the data: what to read, how to split it, and how to shuffle it."""

import dataclasses

from gptneo_jax.data.block_cache import DEFAULT_GIB
from gptneo_jax.data.documents import DataError

_MAX_STREAMS = 64  # chosen for num_streams=0; up to this many hosts can share the reading

SOURCES = ("stdlib", "jsonl", "text", "datasets", "auto", "shards")
ON_TOO_LONG = ("stop", "drop", "truncate_left")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The `data` section of a training config.

  Attributes:
    source: 'stdlib' (the Python standard library's own source), 'jsonl', 'text', 'datasets',
      'auto' (files of every kind, by their endings), 'shards' (what gptneo_jax.prepare made) or
      'mixture'.
    path: jsonl: glob of JSON lines, JSON arrays or parquet (local, gs://, s3://); text: folder or
      glob of text files, in which `<|endoftext|>` separates documents; files may be compressed,
      several paths are separated by commas; auto: all of these, and CSV and TSV; shards: their
      folder; datasets: `NAME_OR_PATH[#SPLIT]`, SPLIT 'train' unless given.
    document: of files of text: 'file' (several documents if it holds `<|endoftext|>`), 'line' or
      'paragraph' (separated by blank lines).
    validation_path, test_path: a separate source of the same kind, all of which is the split; ''
      takes that split from the documents of the training source. Of 'shards' it is files of text,
      as for 'auto'; '' is what was held out when they were prepared.
    validation_fraction, test_fraction: shares of the documents, by a hash of the text, so that
      equal texts are in the same split. Of the standard library, packages are held out instead.
    mixture: (weight, source, path), ...; weights are shares of the tokens.
    tokenizer: hub id, folder, file in the format of tokenizer.json, or 'train' to train one on the
      training split; with token shards that is the one that they were made with.
    num_streams: virtual streams S; S divides the batch size and the hosts divide S. 0: see
      `for_batch`.
    shuffle_window: documents shuffled together, per stream; fewer if they hold 2**25 characters.
    segment_ids: whether batches mark documents, so that attention is kept within each.
    on_bad_record: 'stop' or 'skip' (and count) records and files that cannot be read.
    text_key: field of a record that holds the text; 'a.b' is field b of field a; a number is a
      column of a table without header, from 0.
    datasets_config: configuration name of a `datasets` source.
    columns: what the fields of a labelled record are, 'text=message,label=0'; numbers count the
      columns of a table without header from 0. '' goes by their names.
    on_too_long: 'stop' at an example longer than a row, 'drop' or 'truncate_left' (and count) it.
    prefetch: batches read ahead.
    cache: folder of the blocks of 'shards' that are behind a URL; '' is in the user's cache folder.
    cache_gib: its limit in GiB; what was read longest ago leaves.
  """

  source: str = "stdlib"
  path: str = ""
  document: str = "file"
  validation_path: str = ""
  test_path: str = ""
  validation_fraction: float = 0.01
  test_fraction: float = 0.0
  mixture: tuple[tuple[float, str, str], ...] = ()
  tokenizer: str = "train"
  num_streams: int = 0
  shuffle_window: int = 256
  segment_ids: bool = False
  on_bad_record: str = "stop"
  text_key: str = "text"
  datasets_config: str = ""
  columns: str = ""
  on_too_long: str = "stop"
  prefetch: int = 4
  cache: str = ""
  cache_gib: float = DEFAULT_GIB

  def __post_init__(self):
    object.__setattr__(self, "mixture", tuple(tuple(entry) for entry in self.mixture))
    if self.source not in (*SOURCES, "mixture"):
      raise ValueError(
        f"data.source is '{self.source}'; it is one of {', '.join(SOURCES)}, mixture"
      )
    if self.document not in ("file", "line", "paragraph"):
      raise ValueError(f"data.document is '{self.document}'; it is 'file', 'line' or 'paragraph'")
    if self.on_bad_record not in ("stop", "skip"):
      raise ValueError(f"data.on_bad_record is '{self.on_bad_record}'; it is 'stop' or 'skip'")
    if self.on_too_long not in ON_TOO_LONG:
      raise ValueError(
        f"data.on_too_long is '{self.on_too_long}'; it is one of {', '.join(ON_TOO_LONG)}"
      )
    for name, least in (("num_streams", 0), ("shuffle_window", 1), ("prefetch", 0)):
      value = getattr(self, name)
      if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"data.{name} is {value!r}; it must be a whole number, {least} or more")
    for name in ("validation_fraction", "test_fraction"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"data.{name} is {getattr(self, name)}; it must be in [0, 1)")
    if self.validation_fraction + self.test_fraction >= 1:
      raise ValueError(
        "data.validation_fraction and data.test_fraction leave nothing to train on:"
        f" {self.validation_fraction} + {self.test_fraction} is 1 or more"
      )
    if not 0 < self.cache_gib < float("inf"):
      raise ValueError(f"data.cache_gib is {self.cache_gib}; it must be above 0")
    for name in ("tokenizer", "text_key"):
      if not getattr(self, name):
        raise ValueError(f"data.{name} must not be empty")
    self._check_paths()

  def _check_paths(self):
    if self.source == "mixture":
      if not self.mixture:
        raise ValueError("data.source is 'mixture', but data.mixture is empty")
      if self.path:
        raise ValueError("data.path is not used for a mixture; its paths are in data.mixture")
    elif self.mixture:
      raise ValueError(f"data.mixture is given, but data.source is '{self.source}', not 'mixture'")
    for entry in self.mixture:
      if len(entry) != 3:
        raise ValueError(f"data.mixture: {entry!r} is not (weight, source, path)")
      weight, source, _ = entry
      if isinstance(weight, str) or not 0 < weight < float("inf"):
        raise ValueError(f"data.mixture: weight {weight!r} of '{source}' must be above 0")
      if source not in SOURCES:
        raise ValueError(f"data.mixture: source '{source}' is none of {', '.join(SOURCES)}")
    for _, source, path in self.entries:
      if source == "stdlib" and path:
        raise ValueError(f"data.path '{path}': the source 'stdlib' takes no path")
      if source != "stdlib" and not path:
        raise ValueError(f"data.path is empty; the source '{source}' needs one")
    kinds = {source for _, source, _ in self.entries}
    if self.document != "file" and not kinds & {"text", "auto"}:
      raise ValueError(
        f"data.document is '{self.document}', which is for the source 'text' or 'auto'; here:"
        f" {', '.join(sorted(kinds))}"
      )
    for name in ("validation_path", "test_path"):
      if getattr(self, name) and (len(kinds) > 1 or "stdlib" in kinds):
        raise ValueError(
          f"data.{name} is read like data.path, so it needs sources of one kind with a path;"
          f" here: {', '.join(sorted(kinds))}"
        )

  def for_batch(self, batch_size: int) -> "DataConfig":
    """This config, in which num_streams=0 is replaced by the largest divisor of the batch up to 64.

    It does not depend on the number of hosts, so that a run can be resumed with another. Raises
    DataError if num_streams is not 0 and does not divide the batch.
    """
    if not self.num_streams:
      most = max(n for n in range(1, _MAX_STREAMS + 1) if batch_size % n == 0)
      return dataclasses.replace(self, num_streams=most)
    if batch_size < 1 or batch_size % self.num_streams:
      raise DataError(
        f"data.num_streams {self.num_streams} does not divide batch_size {batch_size};"
        f" data.num_streams=0 takes the largest number up to {_MAX_STREAMS} that does"
      )
    return self

  @property
  def entries(self) -> tuple[tuple[float, str, str], ...]:
    """(weight, source, path) of every source; one entry unless it is a mixture."""
    return self.mixture if self.source == "mixture" else ((1.0, self.source, self.path),)

  @property
  def shards(self) -> list[str]:
    """Folders of token shards."""
    return [path for _, source, path in self.entries if source == "shards"]

  def own_path(self, split: str) -> str:
    """The path of a split with a source of its own, '' if it is taken from the training source."""
    return {"validation": self.validation_path, "test": self.test_path}.get(split, "")
