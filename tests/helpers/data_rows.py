"""Small shards, batches of them, and the texts in batches."""

import functools
import json

import numpy as np
import zstandard
from hypothesis import strategies as st

from gptneo_jax.data.batches import TrainBatches
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.tokenizer import end_of_text_id

SEQ_LEN = 7


@functools.cache
def byte_tokenizer():
  """A token for each byte, and the end of text with id 256: fast, and reversible."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def write_shards(folder, shards, ending=".jsonl"):
  """One file for each list of texts; returns their glob."""
  for number, texts in enumerate(shards):
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if ending.endswith(".zst"):
      data = zstandard.ZstdCompressor().compress(data)
    (folder / f"{number:03}{ending}").write_bytes(data)
  return f"{folder}/*{ending}"


def config_of(path, **options):
  return DataConfig(**{"source": "jsonl", "path": path, "validation_fraction": 0} | options)


def batches_of(config, tokenizer, **options):
  return TrainBatches(
    config,
    tokenizer,
    **{"batch_size": 2 * config.num_streams, "seq_len": SEQ_LEN, "seed": 3} | options,
  )


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def tokens_of_stream(batches, stream, rows):
  """All tokens of one stream, in order: each row's inputs and its last target."""
  own = slice(stream * rows, (stream + 1) * rows)
  parts = [
    np.concatenate([batch["inputs"][own], batch["targets"][own][:, -1:]], axis=1).ravel()
    for batch in batches
  ]
  return np.concatenate(parts)


def documents_in(tokens, tokenizer):
  """Texts of the complete documents in tokens that begin with one."""
  end = end_of_text_id(tokenizer)
  parts = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
  return [tokenizer.decode(part[:-1]) for part in parts]


texts_strategy = st.lists(
  st.lists(st.text(alphabet="abc é<|endoftext|>", max_size=30), max_size=9), min_size=1, max_size=7
)


@st.composite
def sources(draw):
  """(shards, number of streams): every stream has a document."""
  shards = draw(texts_strategy)
  num_streams = draw(st.integers(1, 4))
  # A shard with as many documents as streams gives each of them at least one.
  shards = [[*shard, *(f"{number}." for number in range(num_streams))] for shard in shards]
  return shards, num_streams
