"""A split is never silently empty; the only document of a source has its end held out."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.batches import TrainBatches
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords
from gptneo_jax.data.evaluation import evaluation_documents
from gptneo_jax.data.sources import open_components
from gptneo_jax.data.splits import (
  Shares,
  cut_in_parts,
  hash_position,
  split_document,
  with_validation,
)
from gptneo_jax.data.tokenizer import load_tokenizer
from tests.helpers.small_tokenizers import documents_of


def texts_without_validation(shares: Shares, number: int) -> list[str]:
  low, high = shares.bounds("validation")
  texts = (f"document {n}" for n in itertools.count())
  return list(
    itertools.islice((text for text in texts if not low <= hash_position(text) < high), number)
  )


def test_the_smallest_hashes_are_taken_where_validation_would_be_empty():
  shares = Shares(validation=0.01, test=0.005)
  texts = texts_without_validation(shares, 240)
  low, high = with_validation(shares, texts * 2).bounds("validation")
  held_out = {text for text in texts if low <= hash_position(text) < high}
  above_test = sorted((hash_position(text), text) for text in texts if hash_position(text) >= low)
  assert held_out == {text for _, text in above_test[:5]}  # 1% of 480
  assert low == shares.test


def test_shares_stay_and_reading_stops_at_the_first_document_of_validation():
  shares = Shares(validation=0.5, test=0.0)
  read = []

  def endless():
    for n in itertools.count():
      read.append(n)
      yield f"document {n}"

  assert with_validation(shares, endless()) == shares
  assert len(read) < 40


def test_240_documents(tmp_path):
  """Splits of a corpus, none of which hashing leaves to validation, are a partition."""
  config = DataConfig(
    source="jsonl", path=f"{tmp_path}/a.jsonl", validation_fraction=0.005, test_fraction=0.005
  )
  texts = texts_without_validation(Shares(0.005, 0.005), 240)
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  splits = {}
  for split in ("train", "validation", "test"):
    components = open_components(config, split, BadRecords("stop"))
    splits[split] = [d.text for component in components for d in component.documents()]
  assert len(splits["validation"]) == 1
  assert sorted(itertools.chain(*splits.values())) == sorted(texts)


@settings(deadline=None, max_examples=200)
@given(
  text=st.text(alphabet="ab \n", min_size=2, max_size=300),
  validation=st.sampled_from([0.0, 0.005, 0.1, 0.5]),
  test=st.sampled_from([0.0, 0.005, 0.3]),
  num_parts=st.integers(1, 9),
)
def test_parts_of_one_document_are_all_of_it(text, validation, test, num_parts):
  (document,) = documents_of(text)
  parts = {
    split: "".join(part.text for part in split_document(document, Shares(validation, test), split))
    for split in ("train", "test", "validation")
  }
  assert "".join(parts.values()) == text  # validation is its end
  assert bool(parts["validation"]) == (validation > 0)
  cut = [part.text for part in cut_in_parts([document], num_parts)]
  assert "".join(cut) == text and all(cut) and len(cut) <= num_parts


def test_one_text_file_trains_with_its_end_held_out(tmp_path):
  """As nanoGPT's input.txt: with more streams than documents, on the beginning of the file."""
  lines = [f"line {n} of the only file there is\n" for n in range(400)]
  (tmp_path / "input.txt").write_text("".join(lines))
  config = DataConfig(
    source="text", path=f"{tmp_path}/input.txt", validation_fraction=0.1, test_fraction=0.0
  )
  (validation,) = [document.text for document in evaluation_documents(config, "validation")]
  (train,) = [document.text for document in evaluation_documents(config, "train")]
  assert train + validation == "".join(lines)
  assert validation.startswith("line ") and 38 <= validation.count("\n") <= 44
  tokenizer = load_tokenizer("train", documents=documents_of(*lines), vocab_size=300)
  batches = TrainBatches(config, tokenizer, batch_size=8, seq_len=64, seed=0)
  seen = {}
  for _ in range(30):
    for row, ids in enumerate(next(batches)["inputs"]):
      seen.setdefault(row, []).extend(ids.tolist())
  state = batches.get_state()
  following = next(batches)
  batches.close()
  for ids in seen.values():
    assert "only file" in tokenizer.decode(ids)
  together = "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in seen.values())
  assert all(line.strip() in together for line in lines[5:300:50])
  assert "line 399" not in together and "line 380" not in together
  again = TrainBatches(config, tokenizer, batch_size=8, seq_len=64, seed=0)
  again.set_state(state)
  assert (next(again)["inputs"] == following["inputs"]).all()
  again.close()


@pytest.mark.parametrize("number", [2, 3])
def test_a_few_files_train(number, tmp_path):
  """One is held out, and the streams share the others."""
  for n in range(number):
    (tmp_path / f"{n}.txt").write_text(f"file {n} says this. " * 60)
  config = DataConfig(
    source="text", path=str(tmp_path), validation_fraction=0.005, test_fraction=0.0, num_streams=4
  )
  assert len(list(evaluation_documents(config, "validation"))) == 1
  tokenizer = load_tokenizer("train", documents=documents_of("file 0 1 2 says"), vocab_size=270)
  batches = TrainBatches(config, tokenizer, batch_size=4, seq_len=16, seed=0)
  assert next(batches)["inputs"].shape == (4, 16)
  batches.close()
