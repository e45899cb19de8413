"""Tokenizers: learning, loading, saving; no text can contain the end of text."""

import json
import logging

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.data import tokenizer as tokenizer_module
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.evaluation import evaluation_documents, mixed_documents
from gptneo_jax.data.tokenizer import (
  END_OF_TEXT,
  DocumentEncoder,
  check_vocabulary,
  end_of_text_id,
  load_tokenizer,
  save_tokenizer,
  saved_tokenizer,
)

TEXT = "The quick brown fox jumps over the lazy dog. Olá, mundo: ação e coração. " * 30


def documents(*texts):
  return [Document(text, "s", "f:1") for text in texts or (TEXT, TEXT.upper())]


@pytest.fixture(scope="module")
def learned():
  return load_tokenizer("train", documents=documents(), vocab_size=320)


def test_learned_tokenizer(learned):
  assert len(learned) == 320
  assert learned.bos_token == learned.eos_token == learned.unk_token == END_OF_TEXT
  assert learned.decode(DocumentEncoder(learned).encode([TEXT])[0]) == TEXT
  assert end_of_text_id(learned) == learned.convert_tokens_to_ids(END_OF_TEXT)
  assert end_of_text_id(learned) is not None


def test_learning_is_deterministic(learned):
  again = load_tokenizer("train", documents=documents(), vocab_size=320)
  assert again.backend_tokenizer.to_str() == learned.backend_tokenizer.to_str()
  assert DocumentEncoder(again).fingerprint() == DocumentEncoder(learned).fingerprint()
  other = load_tokenizer("train", documents=documents(), vocab_size=300)
  assert DocumentEncoder(other).fingerprint() != DocumentEncoder(learned).fingerprint()


@pytest.mark.parametrize("remote", [False, True])
def test_learned_tokenizer_is_saved_and_found_again(tmp_path, remote):
  folder = "memory://run/tokenizer" if remote else str(tmp_path / "deep" / "tokenizer")
  assert saved_tokenizer(folder) is None
  first = load_tokenizer("train", documents=documents(), vocab_size=320)
  save_tokenizer(load_tokenizer("train", documents=documents(), vocab_size=300), folder)
  save_tokenizer(first, folder)
  again = saved_tokenizer(folder)
  assert again.get_vocab() == first.get_vocab()
  assert again.eos_token_id == first.eos_token_id
  assert again.encode("a<|endoftext|>b") == first.encode("a<|endoftext|>b")
  if not remote:
    assert load_tokenizer(folder).get_vocab() == first.get_vocab()


def test_only_a_bounded_sample_is_read(monkeypatch):
  monkeypatch.setattr(tokenizer_module, "_SAMPLE_BYTES", 5000)
  read = []

  def endless():
    while True:
      read.append(TEXT)
      yield documents(TEXT)[0]

  load_tokenizer("train", documents=endless(), vocab_size=300)
  assert sum(len(text.encode()) for text in read) < 5000 + 2 * len(TEXT.encode())


def test_nothing_to_learn_from():
  with pytest.raises(DataError, match="no training text"):
    load_tokenizer("train", documents=[], vocab_size=300)
  with pytest.raises(DataError, match="257 or more"):
    load_tokenizer("train", documents=documents(), vocab_size=256)


def test_mixture_shows_every_source_to_the_learner(tmp_path):
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


pieces = st.sampled_from([END_OF_TEXT, "<|", "|>", "endoftext", " ", "<", "é", "<|endoftext", "\n"])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=12).map("".join))
@example(END_OF_TEXT)
@example(f"a{END_OF_TEXT * 2} b")
def test_no_text_contains_the_end_of_text(learned, text):
  text = text.encode("utf-8", "ignore").decode()
  encoder = DocumentEncoder(learned)
  ids = encoder.encode([text])[0]
  assert encoder.end_of_text not in ids
  assert learned.decode(ids) == text


def test_texts_are_encoded_alike_now_and_later(learned):
  encoder = DocumentEncoder(learned)
  # Long ones on average go to the tokenizer one by one, short ones together.
  for texts in ([], [""], ["a", "", "b c"], [TEXT * 200, "", "a", TEXT]):
    now, later = encoder.encode(texts), encoder.encode_later(texts).result()
    assert [ids.tolist() for ids in later] == [ids.tolist() for ids in now]
    assert all(ids.dtype == np.int32 for ids in later)
  encoder.close()


def test_callers_tokenizer_is_not_changed(learned):
  learned.backend_tokenizer.enable_truncation(5)
  learned.backend_tokenizer.enable_padding(length=9)
  try:
    ids = DocumentEncoder(learned).encode([TEXT, "a"])
    assert len(ids[0]) > 100
    assert len(ids[1]) == 1
    assert learned.backend_tokenizer.truncation["max_length"] == 5
    assert learned.backend_tokenizer.padding["length"] == 9
    assert not learned.backend_tokenizer.encode_special_tokens
  finally:
    learned.backend_tokenizer.no_truncation()
    learned.backend_tokenizer.no_padding()


def test_end_of_text_that_is_not_special_is_refused():
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  with pytest.raises(DataError, match="neither an end-of-sequence token"):
    end_of_text_id(tokenizer)
  tokenizer.eos_token = "end"
  with pytest.raises(DataError, match="as a special token"):
    DocumentEncoder(tokenizer)


def test_no_warning_about_length(shared_data, caplog, recwarn):
  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
  with caplog.at_level(logging.WARNING):
    assert len(DocumentEncoder(gpt2).encode([TEXT * 20])[0]) > gpt2.model_max_length
  assert not caplog.records
  assert end_of_text_id(gpt2) == 50256


def test_end_of_text_with_id_zero(shared_data):
  tokenizer = load_tokenizer(str(shared_data / "checkpoints" / "neo_docs_hf"))
  assert end_of_text_id(tokenizer) == 0
  assert 0 not in DocumentEncoder(tokenizer).encode([END_OF_TEXT])[0]


def test_vocabulary_larger_than_the_models(learned):
  check_vocabulary(learned, 320)
  check_vocabulary(learned, 384)
  with pytest.raises(DataError, match=r"320 ids.* holds 319"):
    check_vocabulary(learned, 319)


def test_tokenizer_that_is_not_there(tmp_path, monkeypatch):
  for name in (f"{tmp_path}/none", "./none", "a/b/c"):
    with pytest.raises(DataError, match="no such folder") as caught:
      load_tokenizer(name)
    assert name in str(caught.value)
  with pytest.raises(DataError, match="cannot be loaded") as caught:
    load_tokenizer(str(tmp_path))
  assert "\n" not in str(caught.value)
  import huggingface_hub

  def unreachable(self, name, **options):
    raise ConnectionError("no route to the hub\nmore lines")

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
  with pytest.raises(DataError, match=r"'nobody/nothing': no such folder.*no route to the hub$"):
    load_tokenizer("nobody/nothing")
