"""Reading documents: every format, every way a record can be bad, and the splits."""

import bz2
import dataclasses
import functools
import gzip
import itertools
import json
import logging
import lzma
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.evaluation import evaluation_documents
from gptneo_jax.data.jsonl import json_lines
from gptneo_jax.data.sources import check_sources, holds_records, open_components, source_name
from gptneo_jax.data.text_files import STDLIB_TEST, STDLIB_VALIDATION, stdlib_files, text_files


def all_records(number):
  return True


def zstd(data: bytes) -> bytes:
  return zstandard.ZstdCompressor().compress(data)


def lines(texts, subset=None) -> bytes:
  meta = {"meta": {"pile_set_name": subset}} if subset else {}
  return "".join(json.dumps({"text": text, **meta}) + "\n" for text in texts).encode()


def read_file(path, policy="stop", start=(0, 0), wanted=all_records):
  """([(cursor, document)], counts of bad records) of one file."""
  bad_records = BadRecords(policy)
  source = json_lines(str(path), "name", "text", bad_records)
  return list(source.read(0, start, wanted)), bad_records.counts


def read_texts(path, policy="stop"):
  documents, counts = read_file(path, policy)
  return [document.text for _, document in documents], counts


ENDINGS = {
  ".jsonl": lambda data: data,
  ".jsonl.zst": zstd,
  ".jsonl.gz": gzip.compress,
  ".jsonl.xz": functools.partial(lzma.compress, preset=0),
  ".jsonl.bz2": bz2.compress,
}
COMPRESSED = [ending for ending in ENDINGS if ending != ".jsonl"]
TEXTS = ["first", "três\n\u2028 linhas", "日本語 🙂", "x" * 400_000, "last"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_compression_gives_the_same_documents(tmp_path, ending):
  path = tmp_path / f"a{ending}"
  path.write_bytes(ENDINGS[ending](lines(TEXTS, "Books")))
  documents, counts = read_file(path)
  assert [document.text for _, document in documents] == TEXTS
  assert {document.subset for _, document in documents} == {"Books"}
  assert documents[1][1].location == f"{path}:2"
  assert counts == {}


@pytest.mark.parametrize("ending", ENDINGS)
def test_reading_continues_from_any_cursor(tmp_path, ending):
  path = tmp_path / f"a{ending}"
  path.write_bytes(ENDINGS[ending](lines(TEXTS)))
  documents, _ = read_file(path)
  for number, (cursor, _) in enumerate(documents):
    rest, _ = read_file(path, start=cursor)
    assert rest == documents[number + 1 :]


def test_only_own_records_are_parsed(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b"not JSON\n" + lines(["b", "c", "d"]))
  documents, _ = read_file(path, wanted=lambda record: record % 2 == 1)
  assert [document.text for _, document in documents] == ["b", "d"]


def test_several_zstd_frames_in_a_file(tmp_path):
  path = tmp_path / "a.jsonl.zst"
  data = lines(TEXTS)
  path.write_bytes(zstd(data[:30]) + zstd(data[30:]) + zstd(b"") + zstd(lines(["more"])))
  assert read_texts(path)[0] == [*TEXTS, "more"]


def test_blank_lines_carriage_returns_byte_order_mark_and_missing_last_line_end(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
  documents, counts = read_file(path)
  assert [document.location for _, document in documents] == [f"{path}:1", f"{path}:4"]
  assert counts == {}


BAD_LINES = {
  b'{"text": "cut of': "invalid JSON",
  b"[" * 100_000: "invalid JSON",
  b'{"txt": "a"}': "no text",
  b'{"text": null}': "no text",
  b'{"text": ["a"]}': "no text",
  b'"a string"': "no text",
  b'{"text": "\xff\xfe"}': "invalid UTF-8",
  b'{"text": "\\ud800"}': "lone surrogate",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_stops_and_is_named(tmp_path, line):
  path = tmp_path / "a.jsonl"
  path.write_bytes(lines(["good"]) + line + b"\n" + lines(["good too"]))
  with pytest.raises(DataError) as caught:
    read_texts(path)
  message = str(caught.value)
  assert message.startswith(f"{path}:2: {BAD_LINES[line]}")
  assert "data.on_bad_record='skip'" in message
  assert "\n" not in message


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_is_skipped_and_counted(tmp_path, line, caplog):
  path = tmp_path / "a.jsonl"
  path.write_bytes(lines(["good"]) + line + b"\n" + lines(["good too"]))
  with caplog.at_level(logging.WARNING):
    texts, counts = read_texts(path, "skip")
  assert texts == ["good", "good too"]
  assert list(counts.values()) == [1]
  assert f"{path}:2" in caplog.text


def noise(size: int) -> str:
  """Text that does not compress, so that a cut falls between documents."""
  import random

  return random.Random(size).randbytes(size // 2).hex()


@pytest.mark.parametrize("ending", COMPRESSED)
def test_cut_off_file(tmp_path, ending):
  path = tmp_path / f"a{ending}"
  texts = [noise(100_000 + number) for number in range(20)]
  complete = ENDINGS[ending](lines(texts))
  path.write_bytes(complete[: len(complete) // 2])
  kept, counts = read_texts(path, "skip")
  assert 5 <= len(kept) < 12
  assert kept == texts[: len(kept)]
  (reason,) = counts
  assert reason.startswith("unreadable file: ") and counts[reason] == 1
  with pytest.raises(DataError, match="cut off") as caught:
    read_texts(path)
  assert str(caught.value).startswith(f"{path}:{len(kept) + 1}: ")


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("content", [b"", b"no such format", None])
def test_empty_foreign_or_damaged_compressed_file(tmp_path, ending, content):
  path = tmp_path / f"a{ending}"
  if content is None:
    damaged = bytearray(ENDINGS[ending](lines([noise(50_000)])))
    damaged[20_000:20_100] = bytes(100)
    damaged[-8:] = bytes(8)
    content = bytes(damaged)
  path.write_bytes(content)
  with pytest.raises(DataError) as caught:
    read_texts(path)
  assert str(caught.value).startswith(f"{path}:")


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_data_error(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("bytes")
  for ending in ENDINGS:
    path = folder / f"a{ending}"
    for content in (data, ENDINGS[ending](data)):
      path.write_bytes(content)
      read_texts(path, "skip")
      try:
        read_texts(path)
      except DataError as error:
        assert str(error).startswith(f"{path}:")


def test_glob_that_matches_nothing(tmp_path):
  glob = f"{tmp_path}/none/*.jsonl"
  config = DataConfig(source="jsonl", path=glob)
  for action in (check_sources, lambda config: open_components(config, "train", None)):
    with pytest.raises(DataError, match="no file matches") as caught:
      action(config)
    assert glob in str(caught.value)


def test_folder_where_a_glob_is_needed(tmp_path):
  with pytest.raises(DataError, match=r"this is a folder; give a glob"):
    check_sources(DataConfig(source="jsonl", path=str(tmp_path)))


def test_missing_validation_path_is_found_before_training(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
  missing = f"{tmp_path}/val.jsonl"
  config = DataConfig(source="jsonl", path=f"{tmp_path}/a.jsonl", validation_path=missing)
  with pytest.raises(DataError, match=r"val\.jsonl"):
    check_sources(config)


def test_unknown_scheme():
  with pytest.raises(DataError, match="nosuchscheme"):
    check_sources(DataConfig(source="jsonl", path="nosuchscheme://bucket/*.jsonl"))


def test_file_name_with_glob_characters(tmp_path):
  path = tmp_path / "a[1].jsonl"
  path.write_bytes(lines(["a"]))
  assert read_texts(path)[0] == ["a"]


def test_remote_file_system():
  import fsspec

  fs = fsspec.filesystem("memory")
  fs.pipe({"/room/a.jsonl": lines(["a"]), "/room/b.jsonl.zst": zstd(lines(["b"]))})
  config = DataConfig(source="jsonl", path="memory://room/*", validation_fraction=0)
  check_sources(config)
  assert [document.text for document in evaluation_documents(config, "train")] == ["a", "b"]


def test_check_imports_nothing_heavy():
  code = (
    "import sys; from gptneo_jax.data import config, sources, batches, tokenizer, evaluation;"
    "sources.check_sources(config.DataConfig());"
    "heavy = {'jax', 'datasets', 'transformers', 'torch'} & set(sys.modules);"
    "assert not heavy, heavy"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_of_text(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b/two.py").write_text("two")
  (tmp_path / "one.md").write_text("um: é")
  (tmp_path / "empty.txt").write_text("")
  (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0\0")
  (tmp_path / ".git").mkdir()
  (tmp_path / ".git/HEAD").write_text("ref")
  bad_records = BadRecords("stop")
  source = text_files(str(tmp_path), "folder", bad_records)
  documents = [
    document
    for shard in range(len(source.shards))
    for _, document in source.read(shard, (0, 0), all_records)
  ]
  assert documents == [
    Document("two", "folder", f"{tmp_path}/b/two.py:1"),
    Document("um: é", "folder", f"{tmp_path}/one.md:1"),
  ]
  assert bad_records.counts == {"binary file": 1}


def test_text_file_that_is_not_utf8(tmp_path):
  path = tmp_path / "latin1.txt"
  path.write_bytes("uma\nmaçã\n".encode("latin-1"))
  config = DataConfig(source="text", path=str(path), validation_fraction=0)
  with pytest.raises(DataError, match="invalid UTF-8") as caught:
    list(evaluation_documents(config, "train"))
  assert str(caught.value).startswith(f"{path}:2: ")
  skip = dataclasses.replace(config, on_bad_record="skip")
  with pytest.raises(DataError, match="holds no document"):
    list(evaluation_documents(skip, "train"))


def test_packages_of_the_standard_library_are_held_out():
  sizes = {}
  files = {}
  for split in ("train", "validation", "test"):
    documents = list(evaluation_documents(DataConfig(), split))
    sizes[split] = sum(len(document.text.encode()) for document in documents)
    files[split] = set(stdlib_files(split, BadRecords("stop")).shards)
    assert all(document.subset == "stdlib" for document in documents)
  assert 200_000 < sizes["validation"] < 500_000
  assert 200_000 < sizes["test"] < 500_000
  assert sizes["train"] > 5_000_000
  assert not files["train"] & (files["validation"] | files["test"])
  assert not files["validation"] & files["test"]
  for split, packages in (("validation", STDLIB_VALIDATION), ("test", STDLIB_TEST)):
    for package in packages:
      assert any(f"/{package}/" in file for file in files[split])
  assert not any("/site-packages/" in file or "/test/" in file for file in files["train"])


@settings(deadline=None, max_examples=25)
@given(
  texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=60),
  validation=st.sampled_from([0.0, 0.2, 0.5]),
  test=st.sampled_from([0.0, 0.3]),
)
def test_splits_are_a_partition_and_equal_texts_are_in_the_same(
  tmp_path_factory, texts, validation, test
):
  path = tmp_path_factory.mktemp("splits") / "a.jsonl"
  path.write_bytes(lines(texts * 2) or b"\n")
  config = DataConfig(
    source="jsonl", path=str(path), validation_fraction=validation, test_fraction=test
  )
  splits = []
  for split in ("train", "validation", "test"):
    try:
      splits.append([document.text for document in evaluation_documents(config, split)])
    except DataError:
      splits.append([])
  assert sorted(itertools.chain(*splits)) == sorted(text for text in texts * 2 if text)
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert not set(splits[one]) & set(splits[other])
  if validation == 0:
    assert not splits[1]


def test_split_shares_are_as_asked(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(lines(str(number) for number in range(4000)))
  config = DataConfig(source="jsonl", path=str(path), validation_fraction=0.1, test_fraction=0.05)
  count = {
    split: len(list(evaluation_documents(config, split))) for split in ("validation", "test")
  }
  assert 320 < count["validation"] < 480
  assert 140 < count["test"] < 260


def test_nothing_is_held_out_for_a_split_with_a_path_of_its_own(tmp_path):
  for name in ("train", "val"):
    (tmp_path / f"{name}.jsonl").write_bytes(lines(f"{name} {number}" for number in range(50)))
  config = DataConfig(
    source="jsonl",
    path=f"{tmp_path}/train.jsonl",
    validation_path=f"{tmp_path}/val.jsonl",
    validation_fraction=0.5,
  )
  assert len(list(evaluation_documents(config, "train"))) == 50
  validation = list(evaluation_documents(config, "validation"))
  assert [document.text for document in validation] == [f"val {number}" for number in range(50)]
  assert len(list(evaluation_documents(config, "validation", limit_documents=7))) == 7


def test_split_that_nothing_is_held_out_for(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
  config = DataConfig(source="jsonl", path=f"{tmp_path}/a.jsonl", validation_fraction=0)
  with pytest.raises(DataError, match=r"data\.validation_path or data\.validation_fraction"):
    evaluation_documents(config, "validation")


@pytest.mark.parametrize(
  ("kind", "path", "name"),
  [
    ("jsonl", "/pile/train/*.jsonl.zst, /c4/en*.json.gz,/pile/train/*.gz", "train+c4"),
    ("stdlib", "", "stdlib"),
    ("jsonl", "/pile/train/*.jsonl.zst", "train"),
    ("jsonl", "val.jsonl.zst", "val"),
    ("jsonl", "*.jsonl", "jsonl"),
    ("datasets", "user/set#test", "set"),
    ("text", "~/src/", "src"),
  ],
)
def test_source_name(kind, path, name):
  assert source_name(kind, path.rstrip("/")) == name


def test_names_of_files_of_records():
  for name in (
    "a.jsonl",
    "a/*.JSONL.ZST",
    "a.json.gz",
    "x.parquet",
    "a.jsonl.xz",
    "b.csv",
    "c.TSV.gz",
  ):
    assert holds_records(name)
  for name in ("a.txt", "a.txt.gz", "jsonl", "a/*"):
    assert not holds_records(name)
