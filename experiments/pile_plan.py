"""What preparing the whole Pile takes: hours, disk, memory, from what is measured here.

  python experiments/pile_plan.py --data GLOB [--cores 64] [--files 30]

Measured: how fast one core hashes documents (`--dedup near`), and how fast equal keys are found
among 16 million. Tokens a second are those that `bench_prepare.py` recorded. The size of the Pile
is its paper's (arXiv:2101.00027, table 1: 825.18 GiB in documents of 5.91 KiB; 30 files). All of it
is for one machine, on which each core is taken to be as fast as one of those measured.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import bench
import numpy as np

from gptneo_jax import data
from gptneo_jax.data.prepare import duplicates
from gptneo_jax.data.prepare.inputs import Part, Settings

_BYTES = 825.18 * 2**30
_DOCUMENTS = _BYTES / (5.91 * 2**10)
_KEYS = 1 << 24
_RATES = pathlib.Path(__file__).with_name("bench_prepare.json")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", required=True, help="a glob: what bench_prepare.py read")
  parser.add_argument("--cores", type=int, default=64)
  parser.add_argument("--files", type=int, default=30, help="that the Pile is in")
  args = parser.parse_args()
  prepared = json.loads(_RATES.read_text(encoding="utf-8"))["results"]
  config = data.DataConfig(source="auto", path=args.data, validation_fraction=0.0)
  sizes = [len(one.text.encode()) for one in data.evaluation_documents(config, "train")]
  if len(sizes) != prepared["documents"]:
    sys.exit(f"--data has {len(sizes)} documents, and bench_prepare.py read others")
  seconds = seconds_of_hashing(args.data)
  found = found_keys_per_second()
  bench.record(
    "pile_plan",
    plan(prepared, sum(sizes), seconds, found, cores=args.cores, files=args.files),
  )


def plan(prepared, size: int, seconds: float, found: float, *, cores: int, files: int) -> dict:
  """size: bytes of the texts that were prepared. seconds: to hash them. found: keys a second."""
  hashed, tokens = size / seconds, _BYTES * prepared["tokens"] / size
  keys, workers = _DOCUMENTS * duplicates._BANDS, min(cores, files)
  of_file = keys / files
  gb = lambda size: round(size / 1e9, 1)
  return {
    "tokens": tokens,
    "cores": cores,
    "hours": {
      **{
        f"encoding, {name}": tokens / rate / cores / 3600
        for name, rate in prepared["tokens_per_second"].items() if name != "tokenizers"
      },
      "hashing for near duplicates, a file a core": _BYTES / hashed / workers / 3600,
      "finding equal keys, one core": keys / found / 3600,
    },
    "disk_gb": {
      "shards": gb(tokens * 2 + _DOCUMENTS * 8),
      "keys of near duplicates": gb(keys * duplicates._KEY.itemsize),
      "the same in buckets, until they are found": gb(keys * 24),
    },
    "memory_gb": {
      # All parts of a file's keys, and the array that they become.
      "hashing, each worker": gb(2 * of_file * duplicates._KEY.itemsize),
      "finding: a file's keys, and their rows": gb(of_file * (duplicates._KEY.itemsize + 2 * 24)),
      "finding: a bucket, sorted": gb(4 * 24 * duplicates._BUCKET),
      "finding: pairs, if each tenth document is a near copy": gb(0.1 * keys * 16 * 2),
    },
    "measured": {"hashed_mb_per_second": hashed / 1e6, "found_keys_per_second": found},
  }  # fmt: skip


def seconds_of_hashing(path: str) -> float:
  """On one core: texts are read, decompressed, and their keys made and written."""
  settings = Settings(path, "", dedup="near")
  with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    for _ in duplicates.hash_files(settings, pathlib.Path(folder), Part(0, 1), print):
      pass
    return time.perf_counter() - began


def found_keys_per_second() -> float:
  """Of two files of random keys, a tenth of which are those of the document before."""
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for file in ("a", "b"):
      rows = np.zeros(_KEYS // 2, duplicates._KEY)
      for field in ("high", "low"):
        rows[field] = rng.integers(0, 2**64, len(rows), np.uint64)
      rows["record"] = np.arange(len(rows)) // duplicates._BANDS
      copied = np.flatnonzero(rng.random(len(rows)) < 0.1)[1:]
      for field in ("high", "low"):
        rows[field][copied] = rows[field][copied - 1]
      documents = int(rows["record"][-1]) + 1
      about = {"kind": "near", "subsets": ["all"], "documents": documents, "records": documents}
      duplicates._write(folder / f"{file}.keys", rows, about)
    began = time.perf_counter()
    duplicates.find(folder, ["a", "b"])
    return _KEYS / (time.perf_counter() - began)


if __name__ == "__main__":
  main()
