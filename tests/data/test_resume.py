"""Exact resume: one order for all hosts and all prefetching; a changed run is refused."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import streams
from gptneo_jax.data.batches import TrainBatches, merge_states
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError
from tests.helpers.data_rows import (
  assert_equal,
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
  source=sources(),
  window=st.integers(1, 12),
  prefetch=st.integers(0, 3),
  stop=st.integers(0, 6),
  mixed=st.booleans(),
  segment_ids=st.booleans(),
  characters=st.sampled_from([1, 25, streams.BLOCK_CHARACTERS]),
  data=st.data(),
)
def test_hosts_prefetching_and_restarts_change_no_batch(
  tokenizer, tmp_path_factory, source, window, prefetch, stop, mixed, segment_ids, characters, data
):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(streams, "BLOCK_CHARACTERS", characters)
    _compare_with_one_host(
      tokenizer, tmp_path_factory, source, window, prefetch, stop, mixed, segment_ids, data
    )


def _compare_with_one_host(
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
    """Iterators over a newly drawn partition of the streams: the hosts may change."""
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
  for _ in range(2):  # and again at the next call
    with pytest.raises(DataError) as caught:
      while True:
        next(iterator)
        count += 1
    assert str(caught.value).startswith(f"{file}:21: no text")
  assert count > 0
  state = iterator.get_state()
  iterator.close()
  # The run can be resumed with bad records skipped.
  skipping = batches_of(dataclasses.replace(config, on_bad_record="skip"), tokenizer)
  expected = take(skipping, count + 20)
  assert skipping.bad_records == {"no text: field 'text' is missing or not a string": 1}
  skipping.set_state(state)
  assert_equal(take(skipping, 20), expected[count:])
  assert list(skipping.bad_records.values()) == [1]
  skipping.close()


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


def test_resume_with_other_data_is_refused(tokenizer, tmp_path):
  """A longer or shorter file, fewer documents in as many bytes, one more file."""
  path = write_shards(tmp_path, [[f"text {n}" for n in range(8)]])
  config = config_of(path, num_streams=1)
  iterator = batches_of(config, tokenizer)
  take(iterator, 3)
  state = iterator.get_state()
  iterator.close()
  file = tmp_path / "000.jsonl"
  original = file.read_text()
  for changed in (original + '{"text": "x"}\n', original[: original.rindex("\n", 0, -1) + 1]):
    file.write_text(changed)
    with pytest.raises(DataError, match=r"bytes of the files was '[0-9]+ .*' and is '[0-9]+ "):
      batches_of(config, tokenizer).set_state(state)
  file.write_text(json.dumps({"text": "y" * (len(original) - len('{"text": ""}\n'))}) + "\n")
  with pytest.raises(DataError, match="changed since it was saved"):
    batches_of(config, tokenizer).set_state(state)
  file.write_text(original)
  batches_of(config, tokenizer).set_state(state)
  (tmp_path / "new.jsonl").write_text('{"text": "a"}\n')
  with pytest.raises(DataError, match="files was"):
    batches_of(config, tokenizer).set_state(state)


DAMAGES = {
  "is no count": lambda streams: streams["0"]["sources"][0].update(record=-1),
  "'x' is no count": lambda streams: streams["0"]["sources"][0].update(index="x"),
  "shard 9 of": lambda streams: streams["0"]["sources"][0].update(shard=9),
  "of other sources": lambda streams: streams["0"].update(sources=[], emitted=[]),
  "token 99999 of a document": lambda streams: streams["0"].update(position=99999),
  "index": lambda streams: streams["0"]["sources"][0].pop("index"),
  "subscriptable": lambda streams: streams.update({"0": 5}),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_state_is_refused(tokenizer, tmp_path, message):
  path = write_shards(tmp_path, [["some text"] * 9])
  batches = batches_of(config_of(path, num_streams=1), tokenizer)
  take(batches, 2)
  state = batches.get_state()
  assert state["streams"]["0"]["current"] is not None
  DAMAGES[message](state["streams"])
  with pytest.raises(DataError, match=f"the saved data state is damaged: .*{message}"):
    batches.set_state(state)
  batches.close()


def test_the_standard_library_is_that_of_one_python(tokenizer, monkeypatch):
  config = DataConfig(source="stdlib", num_streams=1)
  state = batches_of(config, tokenizer).get_state()
  batches_of(config, tokenizer).set_state(state)
  monkeypatch.setattr("platform.python_version", lambda: "3.10.1")
  with pytest.raises(DataError, match=r"python was '3.* and is '3\.10\.1' now"):
    batches_of(config, tokenizer).set_state(state)


def test_merging_states(tokenizer, tmp_path):
  path = write_shards(tmp_path, [["one", "two", "three", "four"]])
  config = config_of(path, num_streams=2)
  one, two = (batches_of(config, tokenizer, streams=[stream]) for stream in (0, 1))
  assert merge_states([one.get_state(), one.get_state()]) == one.get_state()  # of the same rows
  earlier = one.get_state()
  next(one)
  with pytest.raises(DataError, match="disagree about stream 0"):
    merge_states([earlier, one.get_state()])
  with pytest.raises(DataError, match="lacks stream 1"):
    two.set_state(one.get_state())
  other = batches_of(config, tokenizer, seed=9, streams=[1])
  with pytest.raises(DataError, match="seed"):
    merge_states([one.get_state(), other.get_state()])


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
