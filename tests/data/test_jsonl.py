"""JSON arrays, parquet, and the fields of a record."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from gptneo_jax.data import file_formats
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.evaluation import evaluation_documents, mixed_documents
from gptneo_jax.data.jsonl import json_lines
from tests.helpers.data_files import (
  TEXTS,
  assert_continues_from_every_cursor,
  data_config,
  read_shard,
  texts_of,
)
from tests.helpers.data_rows import (
  batches_of,
  byte_tokenizer,
  config_of,
  take,
  tokens_of_stream,
)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_json_array(tmp_path, monkeypatch, indent, chunk):
  monkeypatch.setattr(file_formats, "CHUNK", chunk)
  path = tmp_path / "a.json"
  texts = [*TEXTS[:3], "[1, {}]", 'a "quoted" \\ one', "é" * 3000]
  path.write_text("\n " + json.dumps([{"text": text} for text in texts], indent=indent))
  assert texts_of(path) == texts
  path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
  source = json_lines(str(path), "name", "text", BadRecords("stop"))
  assert_continues_from_every_cursor(source)
  assert read_shard(source)[1][1].location == f"{path}: record 2"


@pytest.mark.parametrize(
  ("tail", "message"),
  [
    ('{"text": "b"', "after record 1: invalid JSON from here on"),
    ('{"text": "b"} {"text": "c"}]', "after record 2: invalid JSON from here on: neither"),
    ('{"text": tru}' + " " * 100 + "]", "after record 1: invalid JSON from here on"),
    ("7]", "record 2: no text"),
    ('{"text": "b"}, ' + "[" * 100_000, "after record 2: invalid JSON from here on"),
  ],
)
def test_damaged_json_array(tmp_path, tail, message):
  path = tmp_path / "a.json"
  path.write_text('[{"text": "a"}, ' + tail)
  with pytest.raises(DataError) as caught:
    texts_of(path)
  assert str(caught.value).startswith(f"{path}: {message}")
  assert texts_of(path, on_bad_record="skip")[0] == "a"


def write_parquet(path, rows, **options):
  parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def test_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  texts = [f"text {number}" for number in range(700)]
  rows = [
    {"text": text, "meta": {"redpajama_set_name": "C4"}, "score": 1.0, "deep": {"text": text[::-1]}}
    for text in texts
  ]
  write_parquet(path, rows, row_group_size=300)
  assert texts_of(path) == texts
  assert texts_of(path, text_key="deep.text") == [text[::-1] for text in texts]
  source = json_lines(str(path), "name", "text", BadRecords("stop"))
  documents = read_shard(source)
  assert documents[0][1].subset == "C4"
  assert documents[400][1].location == f"{path}: row 401"
  for cursor in (1, 299, 300, 301, 700):
    assert read_shard(source, start=(cursor, 0)) == documents[cursor:]
  assert read_shard(source, wanted=lambda n: n % 350 == 349) == [documents[349], documents[699]]
  with pytest.raises(DataError, match=r"row 1: no text.*the record has text, meta, score, deep"):
    texts_of(path, text_key="content")
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(DataError, match="damaged parquet data"):
    texts_of(path)


def test_nested_text_key_and_the_message_for_a_missing_one(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": {"b": "nested"}, "a.b": "flat"}\n{"a": {"b": {"c": "x"}}}\n')
  assert texts_of(path, text_key="a.b.c", on_bad_record="skip") == ["x"]
  path.write_text('{"a": {"b": "nested"}, "a.b": "flat"}\n{"a": {"b": "nested"}}\n')
  assert texts_of(path, text_key="a.b") == ["flat", "nested"]
  with pytest.raises(DataError, match=r":1: no text: field 'a' is .* \(it is a dict\)"):
    texts_of(path, text_key="a")
  with pytest.raises(DataError, match=r"the record has a, a\.b; data\.text_key names the field"):
    texts_of(path)


@pytest.mark.parametrize(
  "fields",
  [
    {"meta": {"pile_set_name": "Sub"}},
    {"meta": {"redpajama_set_name": "Sub"}},
    {"meta": '{"url": "x"}', "red_pajama_subset": "Sub"},
  ],
)
def test_names_of_subsets(tmp_path, fields):
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"text": "a", **fields}))
  assert [document.subset for document in evaluation_documents(data_config(path), "train")] == [
    "Sub"
  ]


def test_empty_texts_are_skipped_everywhere(tmp_path):
  path = tmp_path / "a.jsonl"
  texts = ["", "a", "", "", "bc", *[""] * 40, "d", ""]
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  assert texts_of(path) == ["a", "bc", "d"]
  assert [document.text for document in mixed_documents(data_config(path))] == ["a", "bc", "d"]
  train = config_of(str(path), num_streams=1, shuffle_window=8, segment_ids=True)
  iterator = batches_of(train, byte_tokenizer())
  batches = take(iterator, 20)
  assert iterator.bad_records == {"empty text": 44}
  iterator.close()
  tokens = tokens_of_stream(batches, 0, 2)
  end = byte_tokenizer().eos_token_id
  assert not (tokens[1:] == end)[tokens[:-1] == end].any()  # no two ends of text in a row
  assert all(row.any() for batch in batches for row in np.asarray(batch["weights"]))
