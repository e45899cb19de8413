"""Training batches: the rows of a host's virtual streams, read ahead, with exact resume."""

import copy
import json
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.prefetch import Prefetcher
from gptneo_jax.data.sources import (
  check_shards,
  divide_among_streams,
  files_fingerprint,
  held_out_shares,
  open_components,
  source_name,
)
from gptneo_jax.data.streams import RowStream, row_stream
from gptneo_jax.data.tokenizer import DocumentEncoder
from gptneo_jax.errors import first_line

# Settings on which the order of the data depends. `prefetch` changes no batch; `on_bad_record` may
# change, so that a run that stopped at a bad record can be resumed.
ORDER_SETTINGS = tuple(
  "source path document mixture datasets_config text_key num_streams shuffle_window".split()
)


class TrainBatches:
  """Iterator over batches without end.

  Each stream fills batch_size / num_streams consecutive rows of the global batch with consecutive
  tokens, T + 1 for each row. A batch is a dict of the rows of `streams`, in their order: `inputs`
  and `targets`, int32 B x T; with data.segment_ids also `segment_ids` (int32 B x T, the number of
  the document in the row, from 1) and `weights` (float32 B x T, 0 where the target is the first
  token of another document).

  Attributes:
    wait_seconds: total time that the consumer waited in `next`.
    epochs: passes over each source so far.
    bad_records: what was wrong -> distinct records skipped.
  """

  def __init__(
    self,
    config: DataConfig,
    tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    streams: Sequence[int] | None = None,
  ):
    """Opens the sources; nothing is read until the first batch.

    Args:
      config: what to read.
      tokenizer: fast Hugging Face tokenizer; not changed.
      batch_size: rows of the global batch; num_streams divides it, or is 0 (see `for_batch`).
      seq_len: T.
      seed: of the shuffling.
      streams: consecutive numbers of this host's streams; None is all of them.

    Raises:
      DataError: a source does not exist, or num_streams does not divide batch_size.
    """
    config = config.for_batch(batch_size)
    number = config.num_streams
    streams = range(number) if streams is None else list(streams)
    if not streams or list(streams) != list(range(streams[0], streams[0] + len(streams))):
      raise ValueError(f"streams {list(streams)} are not consecutive numbers")
    if streams[0] < 0 or streams[-1] >= number:
      raise ValueError(f"streams {list(streams)} are not all among data.num_streams {number}")
    encoder = DocumentEncoder(tokenizer)
    self._bad_records = BadRecords(config.on_bad_record)
    components = open_components(config, "train", self._bad_records)
    check_shards(components, encoder)
    self._fingerprint = {
      **{name: getattr(config, name) for name in ORDER_SETTINGS},
      "held_out": held_out_shares(config),
      "batch_size": batch_size,
      "seq_len": seq_len,
      "seed": seed,
      **files_fingerprint(config, components),
      "tokenizer": encoder.fingerprint(),
    }
    self._fingerprint = json.loads(json.dumps(self._fingerprint))  # as when restored
    components = divide_among_streams(components, number)
    self._names = _distinct([source_name(kind, path) for _, kind, path in config.entries])
    batches = _BatchIterator(
      {
        str(stream): row_stream(
          components,
          encoder,
          stream=stream,
          num_streams=number,
          window=config.shuffle_window,
          width=seq_len + 1,
          seed=seed,
        )
        for stream in streams
      },
      rows_per_stream=batch_size // number,
      seq_len=seq_len,
      segment_ids=config.segment_ids,
    )
    self._iterator = Prefetcher(batches, config.prefetch)
    # Also at exit: a thread that is still in the tokenizer then can abort the process.
    self._close = weakref.finalize(self, _close, self._iterator, encoder)
    self.wait_seconds = 0.0

  def __iter__(self) -> "TrainBatches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch. Raises DataError, also that of the thread that reads ahead."""
    start = time.perf_counter()
    try:
      return next(self._iterator)
    finally:
      self.wait_seconds += time.perf_counter() - start

  def get_state(self) -> dict:
    """State that follows the last batch returned, a small dict of JSON values."""
    return {
      "fingerprint": copy.deepcopy(self._fingerprint),
      "streams": copy.deepcopy(self._iterator.get_state()),
    }

  def set_state(self, state: Mapping) -> None:
    """Continues after the batch that `state` followed; it may hold other hosts' streams too.

    Raises:
      DataError: naming what differs between the saved run and this one, or is damaged.
    """
    try:
      _check_same_run(state["fingerprint"], self._fingerprint)
      own = list(self._iterator.get_state())
      missing = [stream for stream in own if stream not in state["streams"]]
      if missing:
        raise DataError(f"the saved data state lacks stream {', '.join(missing)}")
      self._iterator.set_state({stream: copy.deepcopy(state["streams"][stream]) for stream in own})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
      raise DataError(f"the saved data state is damaged: {first_line(error)}") from None

  @property
  def epochs(self) -> dict[str, float]:
    """Passes over each source so far, by its name: the mean over this host's streams."""
    states = self._iterator.get_state().values()
    return {
      name: sum(state["sources"][n]["epochs"] for state in states) / len(states)
      for n, name in enumerate(self._names)
    }

  @property
  def bad_records(self) -> dict[str, int]:
    return dict(self._bad_records.counts)

  def close(self) -> None:
    """Ends the reading ahead; no batch can be drawn afterwards."""
    if self._close.alive:
      self._close()
      self._bad_records.log_summary()


def merge_states(states: Iterable[Mapping]) -> dict:
  """Merges the states of all hosts into one; DataError if they are not of one run."""
  merged: dict = {}
  for state in states:
    if not merged:
      merged = {"fingerprint": copy.deepcopy(dict(state["fingerprint"])), "streams": {}}
    _check_same_run(merged["fingerprint"], state["fingerprint"])
    # Hosts that hold parts of the same rows (mesh.tensor spans hosts) read the same streams.
    for stream in merged["streams"].keys() & state["streams"].keys():
      if merged["streams"][stream] != state["streams"][stream]:
        raise DataError(f"two hosts' data states disagree about stream {stream}")
    merged["streams"] |= copy.deepcopy(dict(state["streams"]))
  return merged


def _check_same_run(saved: Mapping, present: Mapping) -> None:
  for name in sorted({*saved, *present}):
    if saved.get(name) != present.get(name):
      shown = " ".join(name.split())  # of a damaged state it may be anything
      raise DataError(
        f"cannot resume the data: {shown} was {saved.get(name)!r} and is {present.get(name)!r} now"
      )


def _distinct(names: list[str]) -> list[str]:
  """The names, with a number appended to each repeated one."""
  return [
    f"{name}.{names[:n].count(name) + 1}" if name in names[:n] else name
    for n, name in enumerate(names)
  ]


def _close(iterator: Prefetcher, encoder: DocumentEncoder) -> None:
  encoder.close()  # first, so that a batch that is being made fails instead of waiting for tokens
  iterator.close()


class _BatchIterator:
  """Batches of the rows of some streams, without reading ahead."""

  def __init__(
    self,
    streams: dict[str, RowStream],
    *,
    rows_per_stream: int,
    seq_len: int,
    segment_ids: bool,
  ):
    self._streams = streams
    self._rows, self._seq_len, self._segment_ids = rows_per_stream, seq_len, segment_ids

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    shape = (len(self._streams) * self._rows, self._seq_len + 1)
    tokens, ends = np.empty(shape, np.int32), np.empty(shape, bool)
    for number, stream in enumerate(self._streams.values()):
      for row in range(number * self._rows, (number + 1) * self._rows):
        stream.fill(tokens[row], ends[row])
    batch = {"inputs": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}
    if self._segment_ids:
      # An end of text belongs to the document before it; the next token begins another one.
      ends = ends[:, :-1]
      segment_ids = 1 + np.cumsum(ends, axis=1, dtype=np.int32) - ends
      batch |= {"segment_ids": segment_ids.astype(np.int32), "weights": (~ends).astype(np.float32)}
    return batch

  def get_state(self) -> dict:
    return {name: stream.get_state() for name, stream in self._streams.items()}

  def set_state(self, state: dict) -> None:
    for name, stream in self._streams.items():
      stream.set_state(state[name])
