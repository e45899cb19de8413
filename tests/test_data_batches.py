"""Training batches: nothing lost or repeated, one order for all hosts, exact resume."""

import collections
import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.batches import TrainBatches, merge_states
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.tokenizer import DocumentEncoder, end_of_text_id

SEQ_LEN = 7


@pytest.fixture(scope="module")
def tokenizer():
  """Bytes and an end of text of id 256: quick, and every text is told from every other."""
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
  """Texts of the whole documents in a run of tokens that begins with one."""
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


@settings(deadline=None, max_examples=40)
@given(
  source=sources(),
  window=st.integers(1, 12),
  prefetch=st.integers(0, 3),
  stop=st.integers(0, 6),
  mixed=st.booleans(),
  segment_ids=st.booleans(),
  data=st.data(),
)
def test_hosts_prefetching_and_restarts_change_no_batch(
  tokenizer, tmp_path_factory, source, window, prefetch, stop, mixed, segment_ids, data
):
  shards, num_streams = source
  path = write_shards(tmp_path_factory.mktemp("shards"), shards, ".jsonl.zst")
  plain = write_shards(tmp_path_factory.mktemp("plain"), shards[::-1])
  options = {"num_streams": num_streams, "shuffle_window": window, "segment_ids": segment_ids}
  if mixed:
    mixture = ((2, "jsonl", path), (0.7, "jsonl", plain))
    options |= {"source": "mixture", "path": "", "mixture": mixture}
  config = (
    config_of(path, prefetch=0, **options)
    if not mixed
    else DataConfig(validation_fraction=0, prefetch=0, **options)
  )
  expected = take(batches_of(config, tokenizer), stop + 4)

  config = dataclasses.replace(config, prefetch=prefetch)

  def hosts():
    """Iterators over a partition of the streams, drawn anew: the hosts may change."""
    cuts = sorted(data.draw(st.sets(st.integers(1, num_streams - 1)))) if num_streams > 1 else []
    bounds = [0, *cuts, num_streams]
    parts = [range(low, high) for low, high in itertools.pairwise(bounds)]
    return [batches_of(config, tokenizer, streams=part) for part in parts]

  def joined(iterators, count):
    batches = [
      {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
      for parts in zip(*(take(iterator, count) for iterator in iterators))
    ]
    state = merge_states(iterator.get_state() for iterator in iterators)
    for iterator in iterators:
      iterator.close()
    return batches, json.loads(json.dumps(state))

  before, state = joined(hosts(), stop)
  resumed = hosts()
  for iterator in resumed:
    iterator.set_state(state)
  assert merge_states(iterator.get_state() for iterator in resumed) == state
  after, _ = joined(resumed, 4)
  assert_equal(before + after, expected)


def test_state_goes_back_and_forth_in_one_iterator(tokenizer, tmp_path):
  path = write_shards(tmp_path, [[f"text {n}" for n in range(40)]])
  config = config_of(path, num_streams=2, shuffle_window=5)
  iterator = batches_of(config, tokenizer)
  start = iterator.get_state()
  first = take(iterator, 3)
  middle = iterator.get_state()
  second = take(iterator, 30)
  iterator.set_state(middle)
  assert_equal(take(iterator, 30), second)
  iterator.set_state(start)
  assert_equal(take(iterator, 3), first)
  iterator.close()


def test_state_is_small_and_a_copy(tokenizer, tmp_path):
  path = write_shards(tmp_path, [[f"text {n} " + "x" * 1000 for n in range(40)]])
  config = config_of(path, num_streams=4, shuffle_window=40)
  iterator = batches_of(config, tokenizer)
  take(iterator, 2)
  state = iterator.get_state()
  assert len(json.dumps(state)) < 2000
  state["streams"].clear()
  assert set(iterator.get_state()["streams"]) == {"0", "1", "2", "3"}
  iterator.close()


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


def test_order_is_the_same_for_ever(tokenizer, tmp_path):
  """A fixed answer: a resumed run must find it on other machines and later versions too."""
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
  """Nine shards, four streams: two whole ones each, and a quarter of the ninth."""
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


def bad_shards(tmp_path):
  path = write_shards(tmp_path, [[f"text {n}" for n in range(30)]])
  file = tmp_path / "000.jsonl"
  content = file.read_bytes().splitlines(keepends=True)
  content[20] = b'{"text": 7}\n'
  file.write_bytes(b"".join(content))
  return path, file


@pytest.mark.parametrize("prefetch", [0, 2])
def test_bad_record_surfaces_after_the_batches_before_it(tokenizer, tmp_path, prefetch):
  path, file = bad_shards(tmp_path)
  config = config_of(path, num_streams=1, shuffle_window=4, prefetch=prefetch)
  iterator = batches_of(config, tokenizer)
  count = 0
  for _ in range(2):  # and it is said again, not passed over
    with pytest.raises(DataError) as caught:
      while True:
        next(iterator)
        count += 1
    assert str(caught.value).startswith(f"{file}:21: no text")
  assert count > 0
  state = iterator.get_state()
  iterator.close()
  # The run can go on once the user says that bad records are to be skipped.
  skipping = batches_of(dataclasses.replace(config, on_bad_record="skip"), tokenizer)
  expected = take(skipping, count + 20)
  assert skipping.bad_records == {"no text: field 'text' is missing or not a string": 1}
  skipping.set_state(state)
  assert_equal(take(skipping, 20), expected[count:])
  assert list(skipping.bad_records.values()) == [1]
  skipping.close()


def test_stream_without_documents(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["one", "two"]])
  iterator = batches_of(config_of(path, num_streams=3), tokenizer)
  with pytest.raises(DataError, match=r"stream 2 of 3 has no document.*data\.num_streams"):
    take(iterator, 100)
  iterator.close()


def test_text_tree_with_fewer_files_than_streams(tokenizer, tmp_path):
  for name in "ab":
    (tmp_path / name).write_text(name)
  config = config_of(str(tmp_path), source="text", num_streams=2)
  iterator = batches_of(config, tokenizer)
  assert documents_in(tokens_of_stream(take(iterator, 1), 1, 2), tokenizer)[0] == "b"
  iterator.close()
  iterator = batches_of(dataclasses.replace(config, num_streams=4), tokenizer)
  with pytest.raises(DataError, match="fewer documents than streams"):
    next(iterator)
  iterator.close()


CHANGES = {
  "num_streams": ({"num_streams": 1}, {}),
  "shuffle_window": ({"shuffle_window": 5}, {}),
  "held_out": ({"validation_fraction": 0.01}, {}),
  "batch_size": ({}, {"batch_size": 8}),
  "seq_len": ({}, {"seq_len": 9}),
  "seed": ({}, {"seed": 4}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_resume_with_something_changed_is_refused(tokenizer, tmp_path, name):
  path = write_shards(tmp_path, [["one", "two", "three", "four"]])
  config = config_of(path, num_streams=2)
  state = batches_of(config, tokenizer, batch_size=4).get_state()
  data_options, options = CHANGES[name]
  changed = dataclasses.replace(config, **data_options)
  iterator = batches_of(changed, tokenizer, **{"batch_size": 4} | options)
  with pytest.raises(DataError, match=f"cannot resume the data: {name} was"):
    iterator.set_state(state)


def test_resume_with_another_file_or_a_shorter_one(tokenizer, tmp_path):
  path = write_shards(tmp_path, [[f"text {n}" for n in range(8)]])
  config = config_of(path, num_streams=1)
  iterator = batches_of(config, tokenizer)
  take(iterator, 3)
  state = iterator.get_state()
  iterator.close()
  write_shards(tmp_path, [["one"]])
  with pytest.raises(DataError, match="changed since it was saved"):
    batches_of(config, tokenizer).set_state(state)
  (tmp_path / "new.jsonl").write_text('{"text": "a"}\n')
  with pytest.raises(DataError, match="files was"):
    batches_of(config, tokenizer).set_state(state)


def test_merging_states(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["one", "two", "three", "four"]])
  config = config_of(path, num_streams=2)
  one, two = (batches_of(config, tokenizer, streams=[stream]) for stream in (0, 1))
  with pytest.raises(DataError, match="hold stream 0"):
    merge_states([one.get_state(), one.get_state()])
  with pytest.raises(DataError, match="lacks stream 1"):
    two.set_state(one.get_state())
  other = batches_of(config, tokenizer, seed=9, streams=[1])
  with pytest.raises(DataError, match="seed"):
    merge_states([one.get_state(), other.get_state()])


def test_batch_size_and_streams_are_checked(tokenizer, tmp_path):
  config = config_of(write_shards(tmp_path, [["one", "two"]]), num_streams=2)
  with pytest.raises(DataError, match=r"batch_size 3 .* data.num_streams 2"):
    batches_of(config, tokenizer, batch_size=3)
  for streams in ([0, 2], [1, 0], [2], []):
    with pytest.raises(ValueError, match="streams"):
      batches_of(config, tokenizer, streams=streams)


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


def test_real_documents_and_the_real_tokenizer(shared_data):
  from gptneo_jax.data.tokenizer import load_tokenizer

  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
  path = str(shared_data / "minipile" / "val.jsonl.zst")
  config = config_of(path, num_streams=2, shuffle_window=8)
  options = {"batch_size": 4, "seq_len": 512, "seed": 0}
  iterator = TrainBatches(config, gpt2, **options)
  batches = take(iterator, 20)
  state = iterator.get_state()
  expected = take(iterator, 20)
  iterator.close()
  again = TrainBatches(config, gpt2, **options)
  again.set_state(json.loads(json.dumps(state)))
  assert_equal(take(again, 20), expected)
  again.close()
  with zstandard.open(path, "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
  for stream in (0, 1):
    documents = documents_in(tokens_of_stream(batches, stream, 2), gpt2)
    assert documents
    assert set(documents) <= set(texts[stream::2][:16])


def test_encoder_matches_the_tokenizer(shared_data):
  from transformers import AutoTokenizer

  gpt2 = AutoTokenizer.from_pretrained(str(shared_data / "gpt2_tokenizer"))
  texts = ["Hello  world", "", "olá\n\n\tmundo", "日本 🙂" * 3000]
  for text, ids in zip(texts, DocumentEncoder(gpt2).encode(texts)):
    assert ids.dtype == np.int32
    assert ids.tolist() == gpt2.backend_tokenizer.encode(text).ids
