"""gigatoken beside tokenizers: the same ids, or the ids of tokenizers."""

import sys
import types

import numpy as np
import pytest

from gptneo_jax.data.prepare import checked_encoder
from gptneo_jax.data.prepare.checked_encoder import CheckedEncoder
from gptneo_jax.data.tokenizer import DocumentEncoder, load_tokenizer
from tests.helpers.data_rows import byte_tokenizer

TEXTS = ["a", "", "olá ☂", "x <|endoftext|> y", "\u00a0\u2003 a\r\n\t b", "123 abc's"]


def same(found, texts, tokenizer):
  expected = DocumentEncoder(tokenizer).encode(texts)
  assert len(found) == len(texts)
  for one, other in zip(found, expected):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == np.int32


def test_real_text(shared_data):
  """The GPT-2 tokenizer on documents of every subset; special tokens are ordinary text."""
  pytest.importorskip("gigatoken", reason="gigatoken is not installed")
  from gptneo_jax import data

  path = str(shared_data / "minipile" / "test.jsonl.zst")
  config = data.DataConfig(source="jsonl", path=path, validation_fraction=0)
  texts = [document.text[:5000] for document in data.evaluation_documents(config, "train")]
  tokenizer = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
  said: list[str] = []
  encoder = CheckedEncoder(tokenizer, said.append)
  assert encoder._fast is not None
  same(encoder.encode(texts[:200]), texts[:200], tokenizer)  # nothing is checked
  same(encoder.encode(TEXTS), TEXTS, tokenizer)
  encoder.begin_shard()
  same(encoder.encode(texts[:90]), texts[:90], tokenizer)
  assert said == [] and encoder._fast is not None


class Wrong:
  """Another tokenizer of gigatoken's face: it forgets the letter e."""

  @classmethod
  def from_json(cls, text):
    return cls()

  def encode_batch_list(self, texts, parallel):
    return [byte_tokenizer()(text.replace("e", "")).input_ids for text in texts]


@pytest.mark.parametrize("place", [0, 63])
def test_it_is_given_up_at_the_first_difference(monkeypatch, place):
  monkeypatch.setitem(sys.modules, "gigatoken", types.SimpleNamespace(Tokenizer=Wrong))
  said: list[str] = []
  encoder = CheckedEncoder(byte_tokenizer(), said.append)
  encoder.begin_shard()
  texts = ["a"] * place + ["e"] + ["abe"] * 9
  for part in (texts[:20], texts[20:]):
    if part:
      same(encoder.encode(part), part, byte_tokenizer())
  assert said == ["gigatoken is not used any more: other ids than tokenizers"]


def test_without_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "gigatoken", None)
  assert checked_encoder._gigatoken(byte_tokenizer()) is None
  same(CheckedEncoder(byte_tokenizer(), print).encode(TEXTS), TEXTS, byte_tokenizer())
