"""Files as people have them: compressed, encoded, arrays, parquet, folders with links and pipes."""

import bz2
import functools
import gzip
import io
import json
import logging
import lzma
import os
import tarfile

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gptneo_jax.data import file_formats
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, DataError, warn_once
from gptneo_jax.data.evaluation import evaluation_documents, mixed_documents
from gptneo_jax.data.file_formats import split_chunks
from gptneo_jax.data.jsonl import JsonLines
from gptneo_jax.data.sources import check_sources, open_components
from gptneo_jax.data.text_files import text_files
from tests.helpers.data_rows import (
  batches_of,
  byte_tokenizer,
  config_of,
  documents_in,
  take,
  tokens_of_stream,
)

TEXTS = ["first", "três\nlinhas", "日本語 🙂", "x" * 140_000, "last"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
COMPRESSIONS = {
  "gzip": gzip.compress,
  "zstd": zstandard.ZstdCompressor().compress,
  "xz": functools.partial(lzma.compress, preset=0),
  "bzip2": functools.partial(bz2.compress, compresslevel=1),
  "two members": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
  "skippable frame": lambda data: (
    b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.ZstdCompressor().compress(data)
  ),
  "plain": lambda data: data,
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


def every(record):
  return True


def config(path, kind="jsonl", **options):
  return DataConfig(source=kind, path=str(path), validation_fraction=0, **options)


def texts_of(path, kind="jsonl", **options):
  return [
    document.text for document in evaluation_documents(config(path, kind, **options), "train")
  ]


def read(source, shard=0, start=(0, 0), wanted=every):
  return list(source.read(shard, start, wanted))


def assert_continues_from_every_cursor(source):
  documents = read(source)
  for number, (cursor, _) in enumerate(documents):
    assert read(source, start=cursor) == documents[number + 1 :]
  odd = read(source, wanted=lambda record: record % 2 == 1)
  assert [document for _, document in odd] == [document for _, document in documents[1::2]]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_first_bytes_and_not_the_name_say_how_a_file_is_compressed(tmp_path, compression, encoding):
  for name in ("a.jsonl", "a.jsonl.GZ", "a.ZST", "a.zstd", "a.txt"):
    path = tmp_path / name
    path.write_bytes(COMPRESSIONS[compression](LINES.encode(encoding)))
    assert texts_of(path) == TEXTS
    path.write_bytes(COMPRESSIONS[compression]("\n".join(TEXTS).encode(encoding)))
    assert texts_of(path, "text") == ["\n".join(TEXTS)]  # and no byte order mark in it


def tar_archive(data, name="a.jsonl"):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    tar.addfile(tarfile.TarInfo(name), io.BytesIO(data))
  return buffer.getvalue()


UNSUPPORTED = {
  "zip archive": b"PK\x03\x04" + bytes(20),
  "tar archive": tar_archive(b""),
  "lz4": b"\x04\x22\x4d\x18" + bytes(9),
  "7z": b"7z\xbc\xaf\x27\x1c\0\0",
  "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
  "binary file": b"\x89PNG\0\0",
  "compressed twice": gzip.compress(gzip.compress(b"{}")),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_cannot_be_opened_is_named_and_counted_as_a_file(tmp_path, what):
  files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"]
  files[0].write_text('{"text": "one"}\n')
  for path, data in zip(files[1:], (UNSUPPORTED[what], gzip.compress(UNSUPPORTED[what]))):
    path.write_bytes(data)
    with pytest.raises(DataError, match=what) as caught:
      texts_of(path)
    assert str(caught.value).startswith(f"{path}:1: ") and "\n" not in str(caught.value)
  bad_records = BadRecords("skip")
  (component,) = open_components(config(f"{tmp_path}/*"), "train", bad_records)
  assert [document.text for document in component.documents()] == ["one"]
  assert sum(bad_records.counts.values()) == 2
  assert all(reason.startswith("unreadable file: ") for reason in bad_records.counts)
  # In a folder of text they are skipped, whatever the policy.
  bad_records = BadRecords("stop")
  (component,) = open_components(config(tmp_path, "text"), "train", bad_records)
  assert [document.text for document in component.documents()] == ['{"text": "one"}\n']
  assert sum(bad_records.counts.values()) == 2


def test_texts_that_begin_almost_like_something_else(tmp_path):
  path = tmp_path / "a.txt"
  for text in ("BZh is how it begins", "PK", "Rare", "PARable", "version 2", "[1]"):
    path.write_text(text)
    assert texts_of(path, "text") == [text]
  path.write_bytes(bz2.compress(b""))
  with pytest.raises(DataError, match=r"the train split holds no document$"):
    texts_of(path, "text")


def test_bad_records_and_unreadable_files_are_counted_apart(tmp_path, caplog):
  (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{\n{"text": ""}\n{"txt": 1}\n')
  (tmp_path / "b.jsonl").write_bytes(gzip.compress(LINES.encode())[:-9])
  (tmp_path / "c.jsonl.zst").write_bytes(b"")
  bad_records = BadRecords("skip")
  with caplog.at_level(logging.WARNING):
    (component,) = open_components(config(f"{tmp_path}/*"), "train", bad_records)
    list(component.documents())
    list(component.documents())  # a second epoch counts nothing again
    for _ in range(2):
      bad_records.log_summary()
  assert bad_records.counts == {
    "invalid JSON": 1,
    "empty text": 1,
    "no text: field 'text' is missing or not a string": 1,
    "unreadable file: the gzip file is cut off here": 1,
    "unreadable file: no zstd data: empty": 1,
  }
  assert f"{tmp_path}/b.jsonl:6" in caplog.text  # a warning at the first of each kind
  assert "1 x invalid JSON, 1 x empty text" in caplog.records[-1].message
  assert len(caplog.records) == 5  # four kinds that lose something, and the summary once


def test_utf16_that_is_cut_off(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(LINES.encode("utf-16")[:-3] + b"\0\xd8")
  with pytest.raises(DataError, match=r":5: invalid UTF-16 from here on"):
    texts_of(path)
  assert texts_of(path, on_bad_record="skip") == TEXTS[:-1]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_json_array(tmp_path, monkeypatch, indent, chunk):
  monkeypatch.setattr(file_formats, "CHUNK", chunk)
  path = tmp_path / "a.json"
  texts = [*TEXTS[:3], "[1, {}]", 'a "quoted" \\ one', "é" * 3000]
  path.write_text("\n " + json.dumps([{"text": text} for text in texts], indent=indent))
  assert texts_of(path) == texts
  path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
  source = JsonLines(str(path), "name", "text", BadRecords("stop"))
  assert_continues_from_every_cursor(source)
  assert read(source)[1][1].location == f"{path}: record 2"


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


@settings(deadline=None, max_examples=60)
@given(
  records=st.lists(st.binary(max_size=6).filter(lambda record: b"|" not in record), max_size=6),
  separator=st.sampled_from([b"|", b"|=|", b"||"]),
  size=st.integers(1, 9),
)
def test_records_do_not_depend_on_chunks(records, separator, size):
  data = separator.join(records)
  chunks = (data[start : start + size] for start in range(0, len(data), size))
  expected = data.split(separator)
  assert list(split_chunks(chunks, separator)) == (expected if expected[-1] else expected[:-1])


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
  source = JsonLines(str(path), "name", "text", BadRecords("stop"))
  documents = read(source)
  assert documents[0][1].subset == "C4"
  assert documents[400][1].location == f"{path}: row 401"
  for cursor in (1, 299, 300, 301, 700):
    assert read(source, start=(cursor, 0)) == documents[cursor:]
  assert read(source, wanted=lambda n: n % 350 == 349) == [documents[349], documents[699]]
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
  assert [document.subset for document in evaluation_documents(config(path), "train")] == ["Sub"]


def test_several_globs(tmp_path):
  for name in ("one", "two", "a,b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x.jsonl").write_text(json.dumps({"text": name}))
  both = f"{tmp_path}/one/*.jsonl, {tmp_path}/two/*.jsonl,{tmp_path}/*/x.jsonl"
  assert texts_of(both) == ["a,b", "one", "two"]  # each file once
  assert len(texts_of(f"{tmp_path}/one,{tmp_path}/two", "text")) == 2
  assert texts_of(f"{tmp_path}/a,b/x.jsonl") == ["a,b"]
  with pytest.raises(DataError, match=r"none/\*: no file matches"):
    check_sources(config(f"{both},{tmp_path}/none/*"))
  import fsspec

  fsspec.filesystem("memory").pipe("/room/x.jsonl", b"")
  with pytest.raises(DataError, match="several file systems"):
    check_sources(config(f"{tmp_path}/one/*,memory://room/*"))


@pytest.mark.parametrize("compression", ["plain", "xz"])
def test_text_file_of_several_documents(tmp_path, compression):
  path = tmp_path / "stories.txt"
  text = (
    "\ufeffOne.\n<|endoftext|>\nTwo <|end|>\n\n<|endoftext|>Three<|endoftext|>\r\n<|endoftext|>"
  )
  path.write_bytes(COMPRESSIONS[compression](text.encode()))
  assert texts_of(path, "text") == ["One.\n", "Two <|end|>\n\n", "Three"]
  source = text_files(str(path), "stories", BadRecords("stop"))
  assert_continues_from_every_cursor(source)
  assert [document.location for _, document in read(source)] == [
    f"{path}:1",
    f"{path}: document 2, line 1",
    f"{path}: document 3, line 1",
  ]
  path.write_bytes(COMPRESSIONS[compression](b"good<|endoftext|>a\n\xff<|endoftext|>better"))
  with pytest.raises(DataError, match="document 2, line 2: invalid UTF-8"):
    texts_of(path, "text")
  assert texts_of(path, "text", on_bad_record="skip") == ["good", "better"]


@pytest.mark.parametrize("document", ["line", "paragraph"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_document_a_line_or_paragraph(document, newline, compressed, tmp_path):
  """Reading continues from every cursor; blank lines and paragraphs are no documents."""
  text = "\ufeffone\ntwo\n\n \nthree \u2028 three\n\n\nfour\nfive"
  data = text.replace("\n", newline).encode()
  path = tmp_path / "a.txt"
  path.write_bytes(gzip.compress(data) if compressed else data)
  source = text_files(str(path), "name", BadRecords("stop"), document)
  read = list(source.read(0, (0, 0), lambda number: True))
  expected = {
    "line": ["one", "two", "three \u2028 three", "four", "five"],
    "paragraph": [
      newline.join(("one", "two")),
      "three \u2028 three",
      newline.join(("four", "five")),
    ],
  }[document]
  assert [document.text for _, document in read] == expected
  for number, (cursor, _) in enumerate(read):
    assert list(source.read(0, cursor, lambda number: True)) == read[number + 1 :]
  assert (
    read[1][1].location
    == {"line": f"{path}:2", "paragraph": f"{path}: paragraph 2, line 1"}[document]
  )


def test_one_text_file_feeds_several_streams(tmp_path):
  (tmp_path / "a.txt").write_text("<|endoftext|>".join("abcdef"))
  iterator = batches_of(
    config_of(f"{tmp_path}/a.txt", source="text", num_streams=3), byte_tokenizer()
  )
  batches = take(iterator, 4)
  iterator.close()
  owned = [set(documents_in(tokens_of_stream(batches, s, 2), byte_tokenizer())) for s in range(3)]
  assert owned == [set("ad"), set("be"), set("cf")]


def test_folder_with_links_and_pipes(tmp_path, caplog):
  warn_once.cache_clear()
  tree, other = tmp_path / "tree", tmp_path / "other"
  tree.mkdir(), other.mkdir()
  (other / "b.txt").write_text("b")
  (tree / "a.txt").write_text("a")
  (tree / "file").symlink_to("../other/b.txt")
  (tree / "folder").symlink_to("../other")
  (tree / "up").symlink_to("..")
  os.mkfifo(tree / "pipe")
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      assert texts_of(tree, "text") == ["a", "b"]
      assert texts_of(f"{tree}/*", "text") == ["a", "b"]  # a glob too takes links to files
  assert [record.message for record in caplog.records] == [
    f"{path}: skipped 3 link(s) to folders, pipes or devices, such as {tree}/folder"
    for path in (tree, f"{tree}/*")
  ]
  assert texts_of(tree / "folder", "text") == ["b"]  # a link that was asked for
  with pytest.raises(DataError, match="pipe or device"):
    texts_of(tree / "pipe", "text")


def test_broken_link_and_file_without_permission(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}')
  (tmp_path / "b.jsonl").symlink_to("nowhere")
  for path, kind in ((f"{tmp_path}/*.jsonl", "jsonl"), (tmp_path, "text")):
    with pytest.raises(DataError, match=r"b\.jsonl: cannot be read: a broken link"):
      texts_of(path, kind)
    bad_records = BadRecords("skip")
    (component,) = open_components(config(path, kind), "train", bad_records)
    assert len(list(component.documents())) == 1
    assert bad_records.counts == {"unreadable file: cannot be read: a broken link": 1}


def test_empty_texts_are_skipped_everywhere(tmp_path):
  path = tmp_path / "a.jsonl"
  texts = ["", "a", "", "", "bc", *[""] * 40, "d", ""]
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  assert texts_of(path) == ["a", "bc", "d"]
  assert [document.text for document in mixed_documents(config(path))] == ["a", "bc", "d"]
  train = config_of(str(path), num_streams=1, shuffle_window=8, segment_ids=True)
  iterator = batches_of(train, byte_tokenizer())
  batches = take(iterator, 20)
  assert iterator.bad_records == {"empty text": 44}
  iterator.close()
  tokens = tokens_of_stream(batches, 0, 2)
  end = byte_tokenizer().eos_token_id
  assert not (tokens[1:] == end)[tokens[:-1] == end].any()  # no two ends of text in a row
  assert all(row.any() for batch in batches for row in np.asarray(batch["weights"]))
