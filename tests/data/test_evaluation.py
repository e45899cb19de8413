"""Evaluation windows against the definition, and the baselines against closed forms."""

import collections
import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.compression_baselines import byte_unigram_bits_per_byte, gzip_bits_per_byte
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.evaluation import (
  EvaluationBatches,
  KeptBatches,
  evaluation_documents,
  evaluation_windows,
)
from gptneo_jax.data.tokenizer import DocumentEncoder, end_of_text_id, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
  documents = [Document("one two three quatro ção " * 50, "s", "f:1")]
  return load_tokenizer("train", documents=documents, vocab_size=280)


texts_strategy = st.lists(st.text(alphabet="one two ção 日<|endoftext|>", max_size=40), max_size=8)


def documents_of(texts):
  return [Document(text, f"subset {number % 2}", "f:1") for number, text in enumerate(texts)]


@settings(deadline=None, max_examples=60)
@given(texts=texts_strategy, seq_len=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_every_token_is_scored_once_in_its_context(tokenizer, texts, seq_len, batch_size):
  documents = documents_of(texts)
  end = end_of_text_id(tokenizer)
  all_ids = DocumentEncoder(tokenizer).encode(texts)
  evaluation = EvaluationBatches(documents, tokenizer, batch_size=batch_size, seq_len=seq_len)
  batches = list(evaluation)
  rows = []
  for batch in batches:
    assert batch["inputs"].shape == batch["targets"].shape == (batch_size, seq_len)
    assert batch["weights"].dtype == np.float32
    assert batch["row_document"].dtype == batch["inputs"].dtype == np.int32
    rows += [{name: batch[name][row] for name in batch} for row in range(batch_size)]
  real = [row for row in rows if row["row_document"] >= 0]
  # Rows of padding come last, are fewer than a batch, and weigh nothing.
  assert rows[: len(real)] == real
  assert len(rows) - len(real) < batch_size
  assert all(not row["weights"].any() for row in rows[len(real) :])
  for number, ids in enumerate(all_ids):
    own = [row for row in real if row["row_document"] == number]
    assert len(own) == math.ceil(len(ids) / seq_len)
    scored = [row["targets"][row["weights"] > 0] for row in own]
    assert [*np.concatenate([*scored, []])] == ids.tolist()
    before = end
    for row in own:
      count = int(row["weights"].sum())
      assert row["weights"].tolist() == [1.0] * count + [0.0] * (seq_len - count)
      assert row["inputs"][0] == before
      np.testing.assert_array_equal(row["inputs"][1:count], row["targets"][: count - 1])
      before = row["targets"][count - 1]
  assert evaluation.subsets == [document.subset for document in documents]
  assert evaluation.bytes_per_document == [len(text.encode()) for text in texts]
  assert evaluation.tokens_per_document == [len(ids) for ids in all_ids]
  windows = list(evaluation_windows(all_ids, end, seq_len))
  assert [window.document for window in windows] == [row["row_document"] for row in real]
  for window, row in zip(windows, real):
    np.testing.assert_array_equal(window.inputs, row["inputs"])
    np.testing.assert_array_equal(window.targets, row["targets"])
    np.testing.assert_array_equal(window.weights, row["weights"])


@settings(deadline=None, max_examples=60)
@given(texts=texts_strategy, seq_len=st.integers(1, 9), data=st.data())
def test_strided_windows_score_every_token_once_with_the_most_context(
  tokenizer, texts, seq_len, data
):
  stride = data.draw(st.integers(1, seq_len))
  end = end_of_text_id(tokenizer)
  all_ids = DocumentEncoder(tokenizer).encode(texts)
  windows = list(evaluation_windows(all_ids, end, seq_len, stride))
  for number, ids in enumerate(all_ids):
    inputs = [end, *ids[:-1]]
    starts = range(0, len(ids), stride)  # of all possible windows
    scored = {}
    own = [window for window in windows if window.document == number]
    for start, window in zip(starts, own):
      count = min(seq_len, len(ids) - start)
      assert window.inputs[:count].tolist() == inputs[start : start + count]
      assert window.targets[:count].tolist() == ids[start : start + count].tolist()
      for column in np.flatnonzero(window.weights):
        assert column < count and start + column not in scored
        scored[start + column] = column  # tokens of context
    assert sorted(scored) == list(range(len(ids)))
    for token, context in scored.items():
      holding = [start for start in starts if start <= token < start + seq_len]
      assert context == max(token - start for start in holding)
    assert len(own) == sum(window.weights.any() for window in own)  # no window scores nothing


def test_a_stride_of_seq_len_is_disjoint(tokenizer):
  documents = documents_of(["one two three " * 9, "", "two"])
  disjoint = EvaluationBatches(documents, tokenizer, batch_size=2, seq_len=8)
  for batch, other in zip(
    disjoint,
    EvaluationBatches(documents, tokenizer, batch_size=2, seq_len=8, stride=8),
    strict=True,
  ):
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


@settings(deadline=None, max_examples=30)
@given(
  lengths=st.lists(st.integers(0, 400), max_size=90),
  seq_len=st.integers(1, 300),
  batch_size=st.integers(1, 3),
)
def test_sorted_batches_hold_the_same_windows(tokenizer, lengths, seq_len, batch_size):
  letters = "xyzw" * 100
  documents = documents_of([letters[:length] for length in lengths])
  stride = (seq_len + 1) // 2
  ids = DocumentEncoder(tokenizer).encode([document.text for document in documents])
  windows = list(evaluation_windows(ids, end_of_text_id(tokenizer), seq_len, stride))
  names = ("inputs", "targets", "weights")
  expected = collections.Counter(
    (window.document, *(getattr(window, name).tobytes() for name in names)) for window in windows
  )
  found, widths = collections.Counter(), []
  for batch in EvaluationBatches(
    documents, tokenizer, batch_size=batch_size, seq_len=seq_len, stride=stride, by_length=True
  ):
    B, T = batch["inputs"].shape
    assert B == batch_size
    widths.append(T)
    for row in np.flatnonzero(batch["row_document"] >= 0):
      padded = []
      for name in names:
        padding = 0 if name == "weights" else end_of_text_id(tokenizer)
        padded.append(np.full(seq_len, padding, batch[name].dtype))
        padded[-1][:T] = batch[name][row]
      found[batch["row_document"][row], *(array.tobytes() for array in padded)] += 1
    assert not batch["weights"][batch["row_document"] < 0].any()
  assert found == expected
  assert set(widths) <= {64, 128, 256, seq_len}
  if len(windows) <= 32 * batch_size:  # sorted together
    longest = sorted((window.length for window in windows), reverse=True)[::batch_size]
    assert all(n <= width < max(2 * n, 65) for n, width in zip(longest, widths, strict=True))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(tokenizer, stride):
  with pytest.raises(ValueError, match=f"stride is {stride}; it must be 1 to 8"):
    EvaluationBatches([], tokenizer, batch_size=2, seq_len=8, stride=stride)


def test_a_file_without_documents_is_named(tmp_path):
  path = tmp_path / "empty.jsonl"
  path.write_text("\n")
  config = DataConfig(source="jsonl", path=str(path), test_path=str(path))
  with pytest.raises(DataError, match=r"empty\.jsonl holds no document"):
    next(evaluation_documents(config, "test"))


def test_batches_come_before_all_documents_are_read(tokenizer):
  read = []

  def endless():
    while True:
      read.append(0)
      yield Document("one two three " * 5000, "s", "f:1")

  next(EvaluationBatches(endless(), tokenizer, batch_size=2, seq_len=16))
  assert len(read) < 100


@pytest.mark.parametrize("limit", [1 << 20, 500])  # 500 bytes: two batches are too many
def test_kept_batches_are_made_once_unless_they_are_too_large(tokenizer, limit):
  documents, read = documents_of(["one two three " * 9, "", "ção one", "two"]), []

  def make():
    reading = (read.append(1) or document for document in documents)
    return EvaluationBatches(reading, tokenizer, batch_size=2, seq_len=8)

  expected = [{k: v.tolist() for k, v in batch.items()} for batch in make()]
  assert len(expected) > 2
  read.clear()
  kept = KeptBatches(make, limit)
  assert read == []
  next(iter(kept))  # drawn, and no more
  for _ in range(3):
    given = []
    for batch in kept:
      given.append({k: v.tolist() for k, v in batch.items()})
      batch.pop("row_document")  # changes to a batch do not reach the kept one
    assert given == expected
    assert kept.subsets == [document.subset for document in documents]
    assert kept.tokens_per_document[1] == 0 and len(kept.bytes_per_document) == 4
  assert len(read) == (4 if limit > 500 else 12)


def test_validation_file_in_source_order(shared_data):
  path = str(shared_data / "minipile" / "val.jsonl.zst")
  train = str(shared_data / "minipile" / "train" / "*.jsonl.zst")
  config = DataConfig(source="jsonl", path=train, validation_path=path)
  documents = list(evaluation_documents(config, "validation"))
  assert len(documents) == 91
  assert sum(len(document.text.encode()) for document in documents) == 1_211_688
  assert [document.location for document in documents] == [
    f"{path}:{number}" for number in range(1, 92)
  ]
  assert len({document.subset for document in documents}) == 14
  assert list(evaluation_documents(config, "validation", 5)) == documents[:5]
  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
  evaluation = EvaluationBatches(documents, gpt2, batch_size=8, seq_len=1024)
  scored = sum(int(batch["weights"].sum()) for batch in evaluation)
  assert scored == sum(evaluation.tokens_per_document) == 485_451


def test_byte_unigram():
  train, held_out = documents_of(["aab"]), documents_of(["ab", "c"])
  expected = -(math.log2(3 / 259) + math.log2(2 / 259) + math.log2(1 / 259)) / 3
  assert byte_unigram_bits_per_byte(train, held_out) == pytest.approx(expected)
  # Nothing learned: eight bits a byte.
  assert byte_unigram_bits_per_byte([], held_out) == pytest.approx(8)
  # Bytes, not characters.
  assert byte_unigram_bits_per_byte(documents_of(["é" * 10**6]), documents_of(["é"])) < 1.01


def test_gzip():
  texts = ["abc" * 1000, "é" * 500]
  size = sum(len(gzip.compress(text.encode(), 9)) for text in texts)
  assert gzip_bits_per_byte(documents_of(texts)) == 8 * size / 4000
