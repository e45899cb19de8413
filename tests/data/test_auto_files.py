"""One source of files of every kind: each is read as what it is, and a run resumes exactly."""

import dataclasses
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from gptneo_jax.data.auto_files import AutoFiles
from gptneo_jax.data.batches import TrainBatches
from gptneo_jax.data.corpus_size import amount_of_data
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.evaluation import evaluation_documents
from gptneo_jax.data.sources import check_sources, open_components, source_files, source_name
from tests.helpers.data_files import assert_continues_from_every_cursor, data_config, texts_of
from tests.helpers.data_rows import assert_equal, take

TEXTS = {  # in the order of the names
  "a.csv": ["of a, table", "two\nlines"],
  "b.txt": ["a plain text,\n{with braces}\n"],
  "c.jsonl": ["of a line"],
  "d.JSON.gz": ["of an array", "of another element"],
  "e": ["{ of a file without ending"],
  "f": ["a line without ending"],
  "g": ["a row without ending"],
  "h.parquet": ["of a row"],
  "i.tsv": ['5" pipe'],
  "j.md": ['{"text": "stays"}\n'],
}


@pytest.fixture
def folder(tmp_path):
  def write(name, data):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())

  write("a.csv", 'text,n\r\n"of a, table",1\r\n"two\nlines",2\r\n')
  write("b.txt", TEXTS["b.txt"][0])
  write("c.jsonl", '{"text": "of a line"}\n')
  array = [{"text": text} for text in TEXTS["d.JSON.gz"]]
  write("d.JSON.gz", gzip.compress(json.dumps(array, indent=1).encode()))
  write("e", TEXTS["e"][0])
  write("f", '{"text": "a line without ending"}\n')
  parquet.write_table(pyarrow.table({"text": TEXTS["g"]}), tmp_path / "g")
  parquet.write_table(pyarrow.table({"text": TEXTS["h.parquet"]}), tmp_path / "h.parquet")
  write("i.tsv", 'text\tn\n5" pipe\t1\n')
  write("j.md", TEXTS["j.md"][0])
  return tmp_path


def test_each_file_is_read_as_what_it_is(folder):
  check_sources(data_config(folder, "auto"))
  expected = [text for texts in TEXTS.values() for text in texts]
  assert texts_of(folder, "auto") == expected
  assert texts_of(f"{folder}/*.csv,{folder}/b.txt", "auto") == TEXTS["a.csv"] + TEXTS["b.txt"]
  source = AutoFiles(str(folder), "name", BadRecords("stop"), text_key="text")
  assert [source.size(n) > 0 for n in range(len(TEXTS))] == [True] * len(TEXTS)
  assert list(source_files(data_config(folder, "auto"), "train")) == source.shards
  (component,) = open_components(data_config(folder, "auto"), "train", BadRecords("stop"))
  for document, text in zip(component.documents(), expected):
    assert document.text == text and document.subset == source_name("auto", str(folder))


def test_lines_of_text_are_documents_where_asked(folder):
  lines = texts_of(f"{folder}/b.txt", "auto", document="line")
  assert lines == ["a plain text,", "{with braces}"]


def test_reading_continues_from_every_cursor(folder):
  for name in TEXTS:
    source = AutoFiles(f"{folder}/{name}", "name", BadRecords("stop"), text_key="text")
    assert_continues_from_every_cursor(source)


def test_resume_is_exact(folder, tokenizer):
  config = data_config(folder, "auto", num_streams=2, shuffle_window=3, prefetch=0)

  def batches():
    return TrainBatches(config, tokenizer, batch_size=2, seq_len=16, seed=1)

  expected = take(batches(), 12)
  started = batches()
  take(started, 5)
  resumed = batches()
  resumed.set_state(started.get_state())
  assert_equal(take(resumed, 7), expected[5:])
  (folder / "b.txt").write_text("changed")
  with pytest.raises(DataError, match="bytes of the files"):
    batches().set_state(started.get_state())


def test_amount_and_split(folder, tokenizer):
  config = data_config(folder, "auto")
  assert amount_of_data(config, tokenizer, 100).startswith("training data: 12 documents, ")
  held = dataclasses.replace(config, validation_fraction=0.2)
  parts = [
    [document.text for document in evaluation_documents(held, split)]
    for split in ("train", "validation")
  ]
  assert sorted(parts[0] + parts[1]) == sorted(text for texts in TEXTS.values() for text in texts)
  assert parts[1]


def test_nothing_there(tmp_path):
  with pytest.raises(DataError, match="no file matches"):
    check_sources(data_config(tmp_path / "none" / "*", "auto"))
