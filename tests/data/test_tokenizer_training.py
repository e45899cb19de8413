"""Training a tokenizer: deterministic, on a bounded sample of every source."""

import json
import random
import time

import pytest

from gptneo_jax.data import tokenizer_training
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.evaluation import evaluation_documents, mixed_documents
from gptneo_jax.data.tokenizer import (
  END_OF_TEXT,
  DocumentEncoder,
  end_of_text_id,
  load_tokenizer,
)
from tests.helpers.small_tokenizers import TEXT, documents_of, trained_tokenizer


@pytest.fixture(scope="module")
def trained():
  return trained_tokenizer()


def test_vocabulary_and_round_trip(trained):
  assert len(trained) == 320
  assert trained.bos_token == trained.eos_token == trained.unk_token == END_OF_TEXT
  assert trained.decode(DocumentEncoder(trained).encode([TEXT])[0]) == TEXT
  assert end_of_text_id(trained) == trained.convert_tokens_to_ids(END_OF_TEXT)
  assert end_of_text_id(trained) is not None


def test_training_is_deterministic(trained):
  again = load_tokenizer("train", documents=documents_of(TEXT, TEXT.upper()), vocab_size=320)
  assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
  assert DocumentEncoder(again).fingerprint() == DocumentEncoder(trained).fingerprint()
  other = load_tokenizer("train", documents=documents_of(TEXT, TEXT.upper()), vocab_size=300)
  assert DocumentEncoder(other).fingerprint() != DocumentEncoder(trained).fingerprint()


def test_only_a_bounded_sample_is_read(monkeypatch):
  monkeypatch.setattr(tokenizer_training, "SAMPLE_BYTES", 5000)
  read = []

  def endless():
    while True:
      read.append(TEXT)
      yield documents_of(TEXT)[0]

  load_tokenizer("train", documents=endless(), vocab_size=300)
  assert sum(len(text.encode()) for text in read) < 5000 + 2 * len(TEXT.encode())


def test_no_text_or_too_few_entries():
  with pytest.raises(DataError, match="no training text"):
    load_tokenizer("train", documents=[], vocab_size=300)
  with pytest.raises(DataError, match="257 or more"):
    load_tokenizer("train", documents=documents_of(TEXT, TEXT.upper()), vocab_size=256)


def test_a_mixture_is_sampled_by_weight(tmp_path):
  mixture = []
  for name, weight in (("a", 3), ("b", 1)):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": name * 10}) + "\n" for _ in range(40)))
    mixture.append((weight, "jsonl", str(path)))
  config = DataConfig(source="mixture", mixture=mixture, validation_fraction=0)
  names = [document.text[0] for document in mixed_documents(config)]
  assert names[:40].count("a") == 30
  assert sorted(names) == sorted("a" * 40 + "b" * 40)
  plain = DataConfig(source="jsonl", path=mixture[0][2], validation_fraction=0)
  assert list(mixed_documents(plain)) == list(evaluation_documents(plain, "train"))


@pytest.mark.parametrize("letters", ["ACGT", "="])
def test_time_and_tokens_of_text_without_spaces_are_bounded(letters, capsys):
  """Without the bound, the letters take 40 s of a core, and the line becomes a token of 400,000."""
  stretch = "".join(random.Random(0).choices(letters, k=400_000))
  start = time.process_time()
  trained = load_tokenizer("train", documents=documents_of(stretch), vocab_size=1000)
  assert time.process_time() - start < 15
  assert max(map(len, trained.get_vocab())) <= 256
  assert "training a tokenizer of 1000 entries on 1 documents" in capsys.readouterr().err
  assert trained.decode(DocumentEncoder(trained).encode([stretch])[0]) == stretch


def test_the_bound_changes_no_tokenizer_of_words(monkeypatch, trained):
  monkeypatch.setattr(tokenizer_training, "MAX_WORD_BYTES", 10**6)
  unbounded = load_tokenizer("train", documents=documents_of(TEXT, TEXT.upper()), vocab_size=320)
  assert unbounded.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
