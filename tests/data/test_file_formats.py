"""Compressed, encoded and foreign files, told by their first bytes; how bad ones are counted."""

import bz2
import gzip
import io
import logging
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.file_formats import split_chunks
from gptneo_jax.data.sources import open_components
from tests.helpers.data_files import COMPRESSIONS, LINES, TEXTS, data_config, texts_of

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


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
  (component,) = open_components(data_config(f"{tmp_path}/*"), "train", bad_records)
  assert [document.text for document in component.documents()] == ["one"]
  assert sum(bad_records.counts.values()) == 2
  assert all(reason.startswith("unreadable file: ") for reason in bad_records.counts)
  # In a folder of text they are skipped, whatever the policy.
  bad_records = BadRecords("stop")
  (component,) = open_components(data_config(tmp_path, "text"), "train", bad_records)
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
    (component,) = open_components(data_config(f"{tmp_path}/*"), "train", bad_records)
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
