"""Preparing data: tokens a second beside the tokenizer alone; rows a second beside ArrayRecord.

  python experiments/bench_prepare.py --data GLOB --tokenizer DIR [--rounds 3]

One process with one thread on each side. `prepare` does all of it: reads and decompresses the
files, encodes, and writes shards with their checksums; also with gigatoken, where that is
installed, and then the shards of both are compared. `tokenizers` encodes the same texts, which are
in memory already, in calls of the same size. Rows are of 2,049 ids, in a shuffled order; of
ArrayRecord (uncompressed, a record a row) they are read 64 at a time. Then how long a stream takes
to its next row when it is restored at a step.
"""

import argparse
import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
from unittest import mock

import bench
import numpy as np

from gptneo_jax import data
from gptneo_jax.data.prepare import units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import TokenShards
from gptneo_jax.data.token_windows import WindowStream

_CALL_CHARACTERS = 1 << 18
_WIDTH = 2049
_ROWS = 2048


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", required=True)
  parser.add_argument("--tokenizer", required=True)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  settings = Settings(args.data, args.tokenizer, validation_fraction=0.0)
  with tempfile.TemporaryDirectory() as folder:
    folders = (pathlib.Path(folder) / str(number) for number in range(1000))
    whole = next(folders)
    prepare(settings, whole)
    sides = {"prepare": lambda: prepare(settings, next(folders))}
    if importlib.util.find_spec("gigatoken"):
      other = next(folders)
      prepare(settings, other, gigatoken=True)
      for file in filter(pathlib.Path.is_file, whole.iterdir()):
        assert file.read_bytes() == (other / file.name).read_bytes(), file
      sides["with gigatoken"] = lambda: prepare(settings, next(folders), gigatoken=True)
    texts = calls(args.data)
    backend = data.load_tokenizer(args.tokenizer).backend_tokenizer
    encode = functools.partial(backend.encode_batch_fast, add_special_tokens=False)
    times = bench.alternate(
      {"tokenizers": lambda: [encode(call) for call in texts] and None, **sides}, args.rounds
    )
    shards = TokenShards(str(whole))
    rows = bench.alternate(
      {"shards": rows_of_shards(shards), "ArrayRecord": rows_of_array_record(shards, folder)},
      args.rounds,
    )
    steps = {"10": (0, 10), "1,000,000": divmod(1_000_000, shards.tokens // _WIDTH)}
    restored = bench.alternate(
      {step: functools.partial(restore, shards, state) for step, state in steps.items()},
      args.rounds,
    )
  bench.record(
    "bench_prepare",
    {
      "documents": sum(manifest.documents for manifest in shards.manifests),
      "tokens": shards.tokens,
      "text_bytes": sum(manifest.text_bytes for manifest in shards.manifests),
      "seconds": times,
      "tokens_per_second": {name: shards.tokens / row["median"] for name, row in times.items()},
      "share_of_tokenizers": {side: bench.ratio(times, "tokenizers", side) for side in sides},
      "rows_per_second": {name: _ROWS / row["median"] for name, row in rows.items()},
      "times_the_rows_of_ArrayRecord": bench.ratio(rows, "ArrayRecord", "shards"),
      "seconds_to_a_row_after_step": restored,
    },
  )


def prepare(settings: Settings, folder: pathlib.Path, gigatoken: bool = False) -> None:
  without = {} if gigatoken else {"gigatoken": None}
  with mock.patch.dict(sys.modules, without):
    units.begin(settings, folder)
    for _ in units.run(settings, folder, Part(0, 1), print):
      pass


def calls(path: str) -> list[list[str]]:
  """All texts, as lists of about _CALL_CHARACTERS."""
  config = data.DataConfig(source="auto", path=path, validation_fraction=0.0)
  found: list[list[str]] = [[]]
  for document in data.evaluation_documents(config, "train"):
    found[-1].append(document.text)
    if sum(map(len, found[-1])) >= _CALL_CHARACTERS:
      found.append([])
  return [call for call in found if call]


def stream_of(shards: TokenShards) -> WindowStream:
  return WindowStream(shards, width=_WIDTH, stream=0, num_streams=1, key=(0,))


def rows_of_shards(shards: TokenShards):
  stream = stream_of(shards)
  return lambda: [stream.next_document() for _ in range(_ROWS)] and None


def rows_of_array_record(shards: TokenShards, folder: str):
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

  path, count = f"{folder}/rows.array_record", shards.tokens // _WIDTH
  writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
  for number in range(count):
    writer.write(shards.ids(number * _WIDTH, _WIDTH).astype("<u2").tobytes())
  writer.close()
  reader, rng = ArrayRecordReader(path), np.random.default_rng(0)

  def read() -> None:
    for _ in range(_ROWS // 64):
      for record in reader.read(rng.integers(0, count, 64).tolist()):
        np.frombuffer(record, "<u2").astype(np.int32)

  return read


def restore(shards: TokenShards, state: tuple[int, int]) -> None:
  stream = stream_of(shards)
  stream.set_state({"epoch": state[0], "index": state[1]})
  stream.next_document()


if __name__ == "__main__":
  main()
