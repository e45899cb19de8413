"""Damaged files: whatever their bytes are, they are read or refused in one line.

  python experiments/fuzz_files.py [--inputs 100000] [--seconds 300] [--only tfrecord,state]

Each reader gets up to `inputs` byte strings for up to `seconds`, in a process of its own: what a
small valid file becomes when bits are flipped, parts cut out, doubled, exchanged, and numbers
replaced. Then as many again that atheris makes, guided by coverage, where it is installed
(`pip install atheris`). Any other error than a UserError, and an input that takes more than ten
seconds, is a finding: it is printed, kept in the record, and the exit status is 1.
"""

import argparse
import collections
import concurrent.futures
import gzip
import importlib.util
import io
import json
import logging
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

if sys.argv[1:2] == ["--guided"]:
  import atheris

  atheris.instrument_imports(include=["gptneo_jax"]).__enter__()

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for tests.helpers

import bench
import numpy as np
import zstandard

from gptneo_jax import data
from gptneo_jax.config import ModelConfig
from gptneo_jax.data import id_files, tfrecords, token_shards
from gptneo_jax.data.documents import BadRecords
from gptneo_jax.data.token_shards import SETTINGS, TokenShards, write_shard
from gptneo_jax.errors import UserError
from gptneo_jax.examples import records
from gptneo_jax.interop import flax_msgpack, hf_config, peft_files, safetensors_file

# A tf.train.Example whose `text` is [1, 300, 7].
_EXAMPLE = bytes.fromhex("0a120a100a047465787412081a060a0401ac0207")
_GUIDED = "--guided"  # first argument of a process that atheris guides
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_LONGEST = 10  # seconds that an input may take
_TEXTS = [{"text": "olá mundo", "meta": {"pile_set_name": "A"}}, {"text": "b"}, {"text": "c d"}]
_LINES = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in _TEXTS).encode()
_SQUAD = {
  "data": [{"paragraphs": [{"context": "a b c", "qas": [
    {"id": "1", "question": "b?", "answers": [{"text": "b", "answer_start": 2}]},
  ]}]}]
}  # fmt: skip
_CONFIG = ModelConfig(
  vocab_size=50, hidden_size=8, num_layers=2, num_heads=2, max_position_embeddings=16,
  window_size=4,
)  # fmt: skip


class Target:
  """A reader, and contents that it takes. `folder` holds what the reader needs beside the file."""

  def __init__(self, read: Callable[[bytes], object], *seeds: bytes):
    self.read, self.seeds = read, seeds


def targets(folder: pathlib.Path) -> dict[str, Target]:
  """By name. folder: for files, best in memory."""

  def file_of(name: str, read: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
    path = folder / name

    def written(content: bytes) -> None:
      path.write_bytes(content)
      read(path)

    return written

  documents = lambda path: list(
    data.evaluation_documents(
      data.DataConfig(source="auto", path=str(path), validation_fraction=0), "train"
    )
  )
  labelled = lambda path: records.read_records(str(path))
  compress = zstandard.ZstdCompressor().compress
  found = {
    "jsonl": Target(file_of("a.jsonl", documents), _LINES, json.dumps(_TEXTS).encode()),
    "jsonl.zst": Target(file_of("a.jsonl.zst", documents), compress(_LINES)),
    "jsonl.gz": Target(file_of("a.jsonl.gz", documents), gzip.compress(_LINES)),
    "text": Target(file_of("a.txt", documents), b"a<|endoftext|>b", "olá".encode("utf-16")),
    "csv": Target(file_of("a.csv", labelled), b'text,label\n"a ""b""",x\nc,y\n', b"a;b\n1;2\n"),
    "tsv": Target(file_of("a.tsv", labelled), b"text\tlabel\na\tx\n"),
    "conll": Target(file_of("a.conll", labelled), b"-DOCSTART- O\n\nA B-X\nb I-X\n\nc O\n"),
    "squad": Target(file_of("a.json", labelled), json.dumps(_SQUAD).encode()),
    "tfrecord": Target(tfrecord, record(_EXAMPLE) * 2),
    "example": Target(lambda content: tfrecord(record(content)), _EXAMPLE),
    "config.json": Target(
      lambda content: hf_config.from_hf(parsed(content), "config.json"),
      json.dumps(hf_config.to_hf(_CONFIG, {}, "5.0.0")).encode(),
    ),
  } | _states(folder)
  (folder / "shards").mkdir()
  found |= _manifests(folder / "shards")
  others = {
    "safetensors": _safetensors, "adapter": _adapter, "msgpack": _msgpack, "megatron": _megatron,
    "datatrove": _datatrove,
  }  # fmt: skip
  for name, make in others.items():
    (folder / name).mkdir()
    found[name] = make(folder / name)
  return found


# --- readers that need something beside the file --------------------------------------------------


def tfrecord(content: bytes) -> None:
  found = tfrecords.read_ids(
    io.BytesIO(content), "a.tfrecords", lambda record: True, BadRecords("stop"), 0
  )
  for _ in found:
    pass


def record(payload: bytes) -> bytes:
  """A payload with its length and checksums."""
  import google_crc32c

  def masked(content: bytes) -> bytes:
    checksum = google_crc32c.value(content)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)

  size = struct.pack("<Q", len(payload))
  return size + masked(size) + payload + masked(payload)


def parsed(content: bytes) -> dict:
  """An object of JSON, as those who read a file of it check."""
  try:
    fields = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise UserError(str(error)) from None
  if not isinstance(fields, dict):
    raise UserError("not an object")
  return fields


def _states(folder: pathlib.Path) -> dict[str, Target]:
  """Of the data: the whole, and the streams alone, which no check of settings stops."""
  from tests.helpers.data_rows import byte_tokenizer

  (folder / "state.jsonl").write_bytes(_LINES * 20)
  settings = data.DataConfig(
    source="jsonl", path=str(folder / "state.jsonl"), num_streams=2, validation_fraction=0,
    prefetch=0,
  )  # fmt: skip
  batches = data.TrainBatches(settings, byte_tokenizer(), batch_size=2, seq_len=9, seed=0)
  for _ in range(3):
    next(batches)
  state = batches.get_state()

  def restore(restored: dict) -> None:
    batches.set_state(restored)
    next(batches)

  return {
    "state": Target(lambda content: restore(parsed(content)), json.dumps(state).encode()),
    "streams": Target(
      lambda content: restore(state | {"streams": parsed(content)}),
      json.dumps(state["streams"]).encode(),
    ),
  }


def _manifests(folder: pathlib.Path) -> dict[str, Target]:
  documents = [np.array([1, 2, 0]), np.array([3, 0])]
  write_shard(
    folder, "0000-a-000000", documents, b"", source="0000-a", first=0, end=2, last=True,
    dtype="uint16", text_bytes=5, end_of_text=0, tokenizer="t", subsets={}, held_out=0,
  )  # fmt: skip
  (folder / SETTINGS).write_text(json.dumps({"sources": ["0000-a"]}))
  path = folder / "0000-a-000000.json"
  seed = path.read_bytes()

  def read(content: bytes) -> None:
    path.write_bytes(content)
    shards = TokenShards(str(folder))
    shards.ids(0, min(shards.tokens, 5))

  def with_checksum(content: bytes) -> None:
    fields = {k: v for k, v in parsed(content).items() if k not in ("format", "checksum")}
    whole = {"format": token_shards.FORMAT, **fields, "checksum": token_shards.checksum(fields)}
    read(json.dumps(whole).encode())

  return {"manifest": Target(read, seed), "manifest fields": Target(with_checksum, seed)}


def _safetensors(folder: pathlib.Path) -> Target:
  import safetensors.numpy

  path = folder / "model.safetensors"
  seed = safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int32)})

  def read(content: bytes) -> None:
    path.write_bytes(content)
    for tensor in safetensors_file.open_safetensors(path).values():
      tensor.read()

  return Target(read, seed)


def _msgpack(folder: pathlib.Path) -> Target:
  from flax import serialization

  path = folder / "flax_model.msgpack"
  tree = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": {"scale": np.ones(3, np.float32)}}

  def read(content: bytes) -> None:
    path.write_bytes(content)
    for tensor in flax_msgpack.open_msgpack(path).values():
      tensor.read()

  return Target(read, serialization.msgpack_serialize(tree))


def _adapter(folder: pathlib.Path) -> Target:
  import safetensors.numpy

  layer = "base_model.model.transformer.h.0.attn.attention.q_proj"
  weights = {f"{layer}.lora_A.weight": np.ones((2, 8), np.float32),
             f"{layer}.lora_B.weight": np.ones((8, 2), np.float32)}  # fmt: skip
  layer_1 = {name.replace("h.0", "h.1"): value for name, value in weights.items()}
  safetensors.numpy.save_file(weights | layer_1, folder / "adapter_model.safetensors")
  settings = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
    "task_type": "CAUSAL_LM", "lora_dropout": 0.0, "fan_in_fan_out": False, "rank_pattern": {},
    "alpha_pattern": {}, "modules_to_save": None, "use_rslora": False,
  }  # fmt: skip
  path = folder / "adapter_config.json"

  def read(content: bytes) -> None:
    path.write_bytes(content)
    peft_files.read_adapter(folder, _CONFIG)

  return Target(read, json.dumps(settings).encode())


def _ids_of(path: pathlib.Path, content: bytes) -> None:
  import fsspec

  path.write_bytes(content)
  fs = fsspec.filesystem("file")
  for _ in id_files.read_ids(fs, str(path), lambda record: True, BadRecords("stop"), 0):
    pass


def _megatron(folder: pathlib.Path) -> Target:
  (folder / "m.bin").write_bytes(bytes(range(6)))
  head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3)
  index = head + struct.pack("<iiqq", 2, 1, 0, 4) + struct.pack("<qqq", 0, 1, 2)
  return Target(lambda content: _ids_of(folder / "m.idx", content), index)


def _datatrove(folder: pathlib.Path) -> Target:
  (folder / "d.ds").write_bytes(bytes(range(6)))

  def read(content: bytes) -> None:
    (folder / "d.ds.index").write_bytes(content)
    _ids_of(folder / "d.ds", bytes(range(6)))

  return Target(read, struct.pack("<QQ", 2, 3))


# --- inputs ---------------------------------------------------------------------------------------

_WORDS = (b"-1", b"0", b"null", b"true", b"1e999", b"NaN", b"[]", b"{}", b'""', b"9" * 30, b"\xff",
          b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\r", b"\xff" * 8, b"[" * 99)  # fmt: skip


def changed(content: bytes, rng: random.Random) -> bytes:
  """The content with one to four changes."""
  made = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    start = rng.randrange(len(made) + 1)
    end = min(len(made), start + rng.choice([1, 1, 2, 4, 8, 30]))
    kind = rng.randrange(7)
    if kind == 0 and made:
      made[min(start, len(made) - 1)] ^= 1 << rng.randrange(8)
    elif kind == 1:
      del made[start:end]
    elif kind == 2:
      made[start:start] = made[start:end]
    elif kind == 3:
      made[start:end] = rng.choice(_WORDS)
    elif kind == 4:
      made[start:end] = rng.randbytes(end - start)
    elif kind == 5:
      del made[start:]
    else:
      other = rng.randrange(len(made) + 1)
      made[start:end] = made[other : other + rng.randint(1, 30)]
  return bytes(made)


class Findings:
  """What became of the inputs of one reader."""

  def __init__(self, target: Target):
    self._target = target
    self.counts: collections.Counter = collections.Counter()
    self.findings: list[str] = []

  def give(self, content: bytes) -> None:
    try:
      self._target.read(content)
      self.counts["read"] += 1
    except UserError as error:
      self.counts["refused"] += 1
      assert "\n" not in str(error), f"several lines: {error}"
    except BaseException as error:
      self.counts["findings"] += 1
      if len(self.findings) < 5:
        self.findings.append(f"{type(error).__name__}: {error!s:.200} of {content[:300]!r}")


def _too_long(*_) -> None:
  raise TimeoutError(f"more than {_LONGEST} s")


def at_random(name: str, inputs: int, seconds: float) -> tuple[dict[str, int], list[str]]:
  """In this process: what became of the inputs of one reader, and the first findings."""
  signal.signal(signal.SIGALRM, _too_long)
  rng, until = random.Random(name), time.monotonic() + seconds
  with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
    target = targets(pathlib.Path(folder))[name]
    found, pool = Findings(target), list(target.seeds)
    for seed in target.seeds:
      target.read(seed)  # a valid one is read
    for _ in range(inputs):
      before = found.counts["read"]
      content = changed(rng.choice(pool), rng)
      signal.alarm(_LONGEST)
      found.give(content)
      signal.alarm(0)
      # What is still read is a seed too: changes add up.
      if found.counts["read"] > before and len(pool) < 2000 and len(content) < 5000:
        pool.append(content)
      if time.monotonic() > until:
        break
  return dict(found.counts), found.findings


def by_coverage(name: str, inputs: int, seconds: float) -> tuple[dict[str, int], list[str]]:
  """As at_random, in a process of its own, which atheris does not let return."""
  with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
    command = [sys.executable, __file__, _GUIDED, name, folder, str(inputs), str(int(seconds))]
    done = subprocess.run(command, capture_output=True, text=True)
    path = pathlib.Path(folder, "found.json")
    counts, findings = json.loads(path.read_text()) if path.exists() else ({}, [])
    if done.returncode:
      findings.append(f"atheris ended with {done.returncode}: {done.stderr[-500:]}")
  return counts, findings


def _guided(name: str, folder: str, inputs: str, seconds: str) -> None:
  """The process of by_coverage; atheris has been given the modules already."""
  root = pathlib.Path(folder)
  for part in ("files", "corpus"):
    (root / part).mkdir()
  target = targets(root / "files")[name]
  for number, seed in enumerate(target.seeds):
    (root / "corpus" / str(number)).write_bytes(seed)
  found = Findings(target)

  def give(content: bytes) -> None:
    found.give(content)
    total = sum(found.counts.values())
    if total % 500 == 0 or found.counts["findings"]:
      (root / "found.json").write_text(json.dumps([found.counts, found.findings]))

  limits = [f"-runs={inputs}", f"-max_total_time={seconds}", f"-timeout={_LONGEST}"]
  atheris.Setup([__file__, *limits, "-max_len=4096", str(root / "corpus")], give)
  atheris.Fuzz()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--inputs", type=int, default=100_000)
  parser.add_argument("--seconds", type=int, default=300)
  parser.add_argument("--only", default="")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    names = args.only.split(",") if args.only else list(targets(pathlib.Path(folder)))
  ways = {"at random": at_random}
  if importlib.util.find_spec("atheris"):
    ways["by coverage"] = by_coverage
  results, findings = {}, []
  with concurrent.futures.ProcessPoolExecutor(2) as pool:
    running = {
      (name, way): pool.submit(run, name, args.inputs, args.seconds)
      for name in names
      for way, run in ways.items()
    }
    for (name, way), one in running.items():
      counts, found = one.result()
      results.setdefault(name, {})[way] = counts
      print(f"{name}, {way}: {counts}", *found, sep="\n  ", flush=True)
      findings += [f"{name}: {finding}" for finding in found]
  total = sum(sum(counts.values()) for ways in results.values() for counts in ways.values())
  bench.record("fuzz_files", {"inputs": total, "readers": results, "findings": findings})
  return int(bool(findings))


if __name__ == "__main__":
  logging.disable(logging.WARNING)
  if sys.argv[1:2] == [_GUIDED]:
    _guided(*sys.argv[2:])
  sys.exit(main())
