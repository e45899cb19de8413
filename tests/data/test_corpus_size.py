"""The line that says how much data there is, against counts made in the test."""

import json
import re

import pytest

from gptneo_jax.data import corpus_size
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.corpus_size import amount_of_data, tokens_of_epoch
from gptneo_jax.data.documents import Document
from gptneo_jax.data.tokenizer import DocumentEncoder, load_tokenizer

TEXTS = [f"document {n} is about the number {n} and no other one" for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
  documents = [Document(text, "s", "f:1") for text in TEXTS]
  return load_tokenizer("train", documents=documents, vocab_size=300)


@pytest.fixture
def corpus(tmp_path):
  for name, texts in (("train", TEXTS), ("val", TEXTS[:7])):
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / f"{name}.jsonl").write_text("".join(lines))
  return {"source": "jsonl", "path": f"{tmp_path}/train.jsonl"}


def test_a_small_corpus_is_counted(corpus, tokenizer, tmp_path):
  config = DataConfig(**corpus, validation_path=f"{tmp_path}/val.jsonl")
  line = amount_of_data(config, tokenizer, tokens_per_step=100)
  size = sum(map(len, TEXTS))
  tokens = sum(len(ids) + 1 for ids in DocumentEncoder(tokenizer).encode(TEXTS))
  found = re.match(
    r"training data: 300 documents, ([\d.]+) kB, about ([\d,]+) tokens, ([\d.]+) steps an epoch;"
    r" validation: 7 documents, (\d+) bytes$",
    line,
  )
  assert found, line
  assert float(found[1]) == pytest.approx(size / 1000, abs=0.05)
  assert int(found[2].replace(",", "")) == pytest.approx(tokens, rel=0.01)
  assert float(found[3]) == pytest.approx(tokens / 100, rel=0.01)
  assert int(found[4]) == sum(map(len, TEXTS[:7]))


@pytest.mark.parametrize("size", [10**9, 5000])  # of what is encoded at once
def test_the_tokens_of_an_epoch(corpus, tokenizer, monkeypatch, size):
  monkeypatch.setattr(corpus_size, "_SAMPLE_BYTES", size)
  tokens = sum(len(ids) + 1 for ids in DocumentEncoder(tokenizer).encode(TEXTS))
  config = DataConfig(**corpus, validation_fraction=0.0)
  assert tokens_of_epoch(config, tokenizer) == tokens
  monkeypatch.setattr(corpus_size, "_COUNTED_BYTES", 1000)
  assert tokens_of_epoch(config, tokenizer) == pytest.approx(tokens, rel=0.1)
  held_out = DataConfig(**corpus, validation_fraction=0.2)
  assert tokens_of_epoch(held_out, tokenizer) < 0.9 * tokens


def test_of_a_large_one_only_the_file_sizes_are_given(corpus, tokenizer, monkeypatch):
  monkeypatch.setattr(corpus_size, "_COUNTED_BYTES", 1000)
  config = DataConfig(**corpus, validation_fraction=0.1)
  line = amount_of_data(config, tokenizer, tokens_per_step=100)
  assert re.match(
    r"training data: 1 file, [\d.]+ kB, not counted; validation: held out by hash", line
  )


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"validation_fraction": 0.0}, "no validation: trains on everything"),
    (
      {"validation_fraction": 1e-9},
      "those of the smallest hashes: data.validation_fraction 1e-09 gives none",
    ),
    ({"validation_fraction": 0.2}, r"validation: \d\d documents, [\d.]+ kB$"),
  ],
)
def test_what_is_held_out(options, said, corpus, tokenizer):
  assert re.search(
    said, amount_of_data(DataConfig(**corpus, **options), tokenizer, tokens_per_step=100)
  )


def test_the_end_of_one_file(tokenizer, tmp_path):
  (tmp_path / "input.txt").write_text("\n".join(TEXTS))
  config = DataConfig(source="text", path=f"{tmp_path}/input.txt", validation_fraction=0.1)
  line = amount_of_data(config, tokenizer, tokens_per_step=100)
  assert line.startswith("training data: 1 document, ")
  assert line.endswith("the end of the only document of a source")


def test_packages_are_held_out_of_the_standard_library(tokenizer):
  line = amount_of_data(DataConfig(source="stdlib"), tokenizer, tokens_per_step=100)
  assert re.search(r"steps an epoch; validation: \d+ documents, [\d.]+ kB$", line)
