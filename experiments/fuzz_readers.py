"""The readers of files that fuzz_files.py gives damaged ones, each with files that it takes."""

import gzip
import io
import json
import pathlib
import struct
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for tests.helpers

import numpy as np
import zstandard
from etils import epath

from gptneo_jax import data
from gptneo_jax.checkpoints import manifest, reading
from gptneo_jax.config import ModelConfig
from gptneo_jax.data import id_files, shard_manifest, tfrecords
from gptneo_jax.data.documents import BadRecords
from gptneo_jax.data.shard_manifest import SETTINGS
from gptneo_jax.data.token_shards import TokenShards, write_shard
from gptneo_jax.errors import UserError
from gptneo_jax.examples import records
from gptneo_jax.interop import flax_msgpack, hf_config, peft_files, safetensors_file

# A tf.train.Example whose `text` is [1, 300, 7].
_EXAMPLE = bytes.fromhex("0a120a100a047465787412081a060a0401ac0207")
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
  (folder / "checkpoint" / "params").mkdir(parents=True)
  found["checkpoint"] = _checkpoint(epath.Path(folder / "checkpoint"))
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
    whole = {"format": shard_manifest.FORMAT, **fields, "checksum": shard_manifest.checksum(fields)}
    read(json.dumps(whole).encode())

  return {"manifest": Target(read, seed), "manifest fields": Target(with_checksum, seed)}


def _checkpoint(folder: epath.Path) -> Target:
  """The list of its files."""
  (folder / "params" / "a").write_text("abc")
  manifest.write(folder, permanent=True)

  def read(content: bytes) -> None:
    (folder / manifest.MANIFEST).write_bytes(content)
    manifest.is_permanent(folder)
    manifest.is_of_earlier_interval(folder, 3600.0)
    try:
      reading.check_files(folder)
    except reading.DamagedError as error:
      raise UserError(str(error)) from None

  return Target(read, (folder / manifest.MANIFEST).read_bytes())


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
