"""Training batches: nothing lost or repeated, mixed by weight, bad input named."""

import collections
import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import streams
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.tokenizer import DocumentEncoder, end_of_text_id
from tests.helpers.data_rows import (
  SEQ_LEN,
  batches_of,
  config_of,
  documents_in,
  sources,
  take,
  tokens_of_stream,
  write_shards,
)


@settings(deadline=None, max_examples=40)
@given(
  source=sources(), window=st.integers(1, 12), ending=st.sampled_from([".jsonl", ".jsonl.zst"])
)
def test_each_epoch_of_a_stream_holds_its_documents_once(
  tokenizer, tmp_path_factory, source, window, ending
):
  shards, num_streams = source
  shards = [[f"{s}/{n}/{text}" for n, text in enumerate(texts)] for s, texts in enumerate(shards)]
  path = write_shards(tmp_path_factory.mktemp("shards"), shards, ending)
  config = config_of(path, num_streams=num_streams, shuffle_window=window, prefetch=0)
  size = sum(len(text.encode()) + 1 for texts in shards for text in texts)
  with_batches = batches_of(config, tokenizer)
  batches = take(with_batches, 3 * size // (2 * (SEQ_LEN + 1)) + 2)  # three epochs and a bit
  everything = collections.Counter(text for texts in shards for text in texts)
  seen = collections.Counter()
  for stream in range(num_streams):
    documents = documents_in(tokens_of_stream(batches, stream, 2), tokenizer)
    own = len(set(documents))
    for epoch in range(3):
      one = documents[epoch * own : (epoch + 1) * own]
      assert sorted(one) == sorted(set(documents)), (stream, epoch)
    seen.update(set(documents))
  assert seen == everything


def test_epochs_and_seeds_differ_in_order(tokenizer, tmp_path):
  texts = [f"{number:03}" for number in range(100)]
  path = write_shards(tmp_path, [texts])
  config = config_of(path, num_streams=1, shuffle_window=10)
  orders = []
  for seed in (1, 2):
    iterator = batches_of(config, tokenizer, seed=seed)
    documents = documents_in(tokens_of_stream(take(iterator, 60), 0, 2), tokenizer)
    iterator.close()
    orders += [documents[:100], documents[100:200]]
  assert all(sorted(order) == texts for order in orders)
  assert len({tuple(order) for order in orders}) == 4
  # Blocks of ten: a document stays within its window, and the blocks come in file order.
  for order in orders:
    assert [sorted(order[start : start + 10]) for start in range(0, 100, 10)] == [
      texts[start : start + 10] for start in range(0, 100, 10)
    ]


def test_documents_shuffled_together_are_bounded_in_size(tokenizer, tmp_path, monkeypatch):
  """A block ends with the document that reaches the bound; each document comes once an epoch."""
  monkeypatch.setattr(streams, "BLOCK_CHARACTERS", 30)
  texts = [f"{number:03}" for number in range(40)]
  texts[20] = "long" * 20
  config = config_of(write_shards(tmp_path, [texts]), num_streams=1, shuffle_window=12)
  iterator = batches_of(config, tokenizer)
  documents = documents_in(tokens_of_stream(take(iterator, 20), 0, 2), tokenizer)[:40]
  iterator.close()
  blocks = [range(10), range(10, 20), [20], range(21, 31), range(31, 40)]
  bounds = np.cumsum([0, *map(len, blocks)])
  for block, (start, end) in zip(blocks, itertools.pairwise(bounds)):
    own = set(documents[start:end])
    assert own <= {texts[number] for number in block} | ({texts[20]} if 20 in block else set())


def test_texts_without_tokens(tmp_path):
  """As an empty text: no two ends of text in a row, and nothing but such texts is an error."""
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  spaces_dropped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
  path = write_shards(tmp_path, [["a b", " ", "\n", "b", "  "]])
  iterator = batches_of(config_of(path, num_streams=1, shuffle_window=2), spaces_dropped)
  tokens = tokens_of_stream(take(iterator, 8), 0, 2)
  iterator.close()
  end = end_of_text_id(spaces_dropped)
  assert not (tokens[1:] == end)[tokens[:-1] == end].any()
  assert set(np.flatnonzero(np.bincount(tokens))) == {0, 1, end}
  write_shards(tmp_path, [[" ", "\n"]])
  iterator = batches_of(config_of(path, num_streams=1), spaces_dropped)
  with pytest.raises(DataError, match=r"no token for any text of .*000\.jsonl"):
    next(iterator)
  iterator.close()


def test_order_is_the_same_forever(tokenizer, tmp_path):
  """A fixed answer: a resumed run needs the same order on other machines and in later versions."""
  path = write_shards(tmp_path, [[f"{s}{n}" for n in range(6)] for s in "abc"])
  config = config_of(path, num_streams=2, shuffle_window=4)
  iterator = batches_of(config, tokenizer, seed=0)
  batches = take(iterator, 2)
  iterator.close()
  orders = [documents_in(tokens_of_stream(batches, stream, 2), tokenizer) for stream in (0, 1)]
  assert orders == [
    "a0 c4 c2 c0 a2 a4 a1 a3 a5 a0".split(),
    "c3 c5 c1 b0 b3 b2 b4 b1 b5 c1".split(),
  ]


def test_left_over_shards_are_dealt_evenly(tokenizer, tmp_path):
  """Nine shards, four streams: two shards each, and a quarter of the ninth."""
  shards = [[f"{s}-{n:02}" for n in range(20)] for s in range(9)]
  path = write_shards(tmp_path, shards)
  iterator = batches_of(config_of(path, num_streams=4, shuffle_window=16), tokenizer)
  batches = take(iterator, 45 * 5 // 16 + 1)
  iterator.close()
  for stream in range(4):
    documents = documents_in(tokens_of_stream(batches, stream, 2), tokenizer)[:45]
    per_shard = collections.Counter(document.split("-")[0] for document in documents)
    assert sorted(per_shard.values()) == [5, 20, 20]


def test_segment_ids_and_weights(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["ab", "cde", "", "f", "ghijklmnop"]])
  config = config_of(path, num_streams=1, shuffle_window=5, segment_ids=True)
  iterator = batches_of(config, tokenizer)
  end = end_of_text_id(tokenizer)
  for batch in take(iterator, 10):
    assert batch["segment_ids"].dtype == np.int32
    assert batch["weights"].dtype == np.float32
    for row in range(2):
      segment, segments, weights = 1, [], []
      for token in batch["inputs"][row]:
        segments.append(segment)
        weights.append(float(token != end))
        segment += int(token == end)
      assert batch["segment_ids"][row].tolist() == segments
      assert batch["weights"][row].tolist() == weights
  iterator.close()
  plain = batches_of(dataclasses.replace(config, segment_ids=False), tokenizer)
  batch = next(plain)
  assert set(batch) == {"inputs", "targets"}
  assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
  assert batch["inputs"].shape == (2, SEQ_LEN)
  np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
  plain.close()


@settings(deadline=None, max_examples=15)
@given(
  weights=st.lists(st.floats(0.1, 5), min_size=2, max_size=3),
  sizes=st.lists(st.integers(1, 80), min_size=3, max_size=3),
)
def test_mixture_follows_its_weights(tokenizer, tmp_path_factory, weights, sizes):
  mixture = []
  for letter, weight, size in zip("xyz", weights, sizes):
    texts = [letter * (size + number % 5) for number in range(20)]
    path = write_shards(tmp_path_factory.mktemp("part"), [texts])
    mixture.append([weight, "jsonl", path])
  config = DataConfig(
    source="mixture", mixture=mixture, validation_fraction=0, num_streams=2, shuffle_window=8
  )
  iterator = batches_of(config, tokenizer)
  batches = take(iterator, 120)
  state = iterator.get_state()
  iterator.close()
  for stream in (0, 1):
    emitted = state["streams"][str(stream)]["emitted"]
    tokens = tokens_of_stream(batches, stream, 2)
    documents = documents_in(tokens, tokenizer)
    for number, weight in enumerate(weights):
      share = weight / sum(weights)
      # Each source is never more than a document or two away from its share.
      assert abs(emitted[number] - share * sum(emitted)) <= 2 * 86
      counted = sum(len(text) + 1 for text in documents if text[0] == "xyz"[number])
      assert abs(counted - emitted[number]) <= 86


def test_duplicate_and_injected_ends_of_text(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["a<|endoftext|>b", "<|endoftext|>"]])
  iterator = batches_of(config_of(path, num_streams=1, shuffle_window=2), tokenizer)
  documents = documents_in(tokens_of_stream(take(iterator, 8), 0, 2), tokenizer)
  iterator.close()
  assert set(documents) == {"a<|endoftext|>b", "<|endoftext|>"}
  # The caller's tokenizer still reads it as the end of text.
  assert end_of_text_id(tokenizer) in tokenizer.encode("a<|endoftext|>b")


def test_stream_without_documents(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["one", "two"]])
  iterator = batches_of(config_of(path, num_streams=3), tokenizer)
  with pytest.raises(DataError, match=r"stream 2 of 3 has no document.*data\.num_streams"):
    take(iterator, 100)
  iterator.close()


def test_files_of_a_folder_go_to_streams_one_by_one(tokenizer, tmp_path):
  for name in "abcde":
    (tmp_path / name).write_text(name)
  config = config_of(str(tmp_path), source="text", num_streams=3)
  iterator = batches_of(config, tokenizer)
  batches = take(iterator, 4)
  iterator.close()
  owned = [set(documents_in(tokens_of_stream(batches, s, 2), tokenizer)) for s in range(3)]
  assert owned == [set("ad"), set("be"), set("c")]
  iterator = batches_of(dataclasses.replace(config, num_streams=6), tokenizer)
  with pytest.raises(DataError, match="fewer documents than streams"):
    next(iterator)
  iterator.close()


def test_batch_size_and_streams_are_checked(tokenizer, tmp_path):
  config = config_of(write_shards(tmp_path, [["one", "two"]]), num_streams=2)
  with pytest.raises(DataError, match=r"data.num_streams 2 .* batch_size 3"):
    batches_of(config, tokenizer, batch_size=3)
  for own in ([0, 2], [1, 0], [2], []):
    with pytest.raises(ValueError, match="streams"):
      batches_of(config, tokenizer, streams=own)


def test_close_ends_the_thread_and_waiting_is_counted(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["one", "two", "three", "four"]])
  before = threading.active_count()
  iterator = batches_of(config_of(path, num_streams=2), tokenizer)
  assert iterator.wait_seconds == 0
  start = time.perf_counter()
  next(iterator)
  assert 0 < iterator.wait_seconds <= time.perf_counter() - start
  iterator.close()
  iterator.close()
  assert threading.active_count() == before


def test_close_does_not_wait_for_the_batch_that_is_being_made(tokenizer, tmp_path, monkeypatch):
  encode = DocumentEncoder._encode
  monkeypatch.setattr(DocumentEncoder, "_encode", lambda *args: time.sleep(0.2) or encode(*args))
  path = write_shards(tmp_path, [["a"] * 100])
  before = threading.active_count()
  # 40 calls of the tokenizer a batch, 4 s with two threads.
  iterator = batches_of(config_of(path, num_streams=1), tokenizer, batch_size=1, seq_len=40 * 128)
  failures = []

  def read():
    try:
      next(iterator)
    except (CancelledError, RuntimeError) as error:
      failures.append(error)

  reading = threading.Thread(target=read)
  reading.start()
  time.sleep(0.3)
  start = time.perf_counter()
  iterator.close()
  assert time.perf_counter() - start < 1.5
  reading.join(timeout=10)
  assert len(failures) == 1 and threading.active_count() == before


def test_process_that_forgets_to_close_exits_cleanly():
  code = (
    "from gptneo_jax.data.config import DataConfig\n"
    "from gptneo_jax.data.batches import TrainBatches\n"
    "from gptneo_jax.data.documents import Document\n"
    "from gptneo_jax.data.tokenizer import load_tokenizer\n"
    "documents = [Document('some text to learn from ' * 9, '', '')]\n"
    "tokenizer = load_tokenizer('train', documents=documents, vocab_size=300)\n"
    "batches = TrainBatches(DataConfig(), tokenizer, batch_size=8, seq_len=64, seed=0)\n"
    "next(batches)\n"
    "raise SystemExit(7)\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 7, done.stderr
  assert "Traceback" not in done.stderr


def test_encoder_matches_the_tokenizer(shared_data):
  from transformers import AutoTokenizer

  gpt2 = AutoTokenizer.from_pretrained(str(shared_data / "gpt2_tokenizer"))
  texts = ["Hello  world", "", "olá\n\n\tmundo", "日本 🙂" * 3000]
  for text, ids in zip(texts, DocumentEncoder(gpt2).encode(texts)):
    assert ids.dtype == np.int32
    assert ids.tolist() == gpt2.backend_tokenizer.encode(text).ids


@pytest.mark.parametrize("window", [4, 1000])
def test_epochs_count_what_was_read(window, tokenizer, tmp_path):
  """After as many tokens as the documents have, one; in between, their share; a resumed run too."""
  path = write_shards(tmp_path, [[f"document {n} of the corpus" for n in range(40)]])
  config = config_of(path, num_streams=2, shuffle_window=window)
  iterator = batches_of(config, tokenizer, batch_size=2, seq_len=7)
  tokens = sum(len(f"document {n} of the corpus") + 1 for n in range(40))
  read, states = [], []
  for _ in range(3 * tokens // 16):
    next(iterator)
    read.append(iterator.epochs)
    states.append(iterator.get_state())
  iterator.close()
  ((name,),) = {tuple(epochs) for epochs in read}
  for number, epochs in enumerate(read, start=1):
    assert epochs[name] == pytest.approx(number * 16 / tokens, abs=0.05)
  again = batches_of(config, tokenizer, batch_size=2, seq_len=7)
  again.set_state(states[30])
  next(again)
  assert again.epochs == read[31]
  again.close()
