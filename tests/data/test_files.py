"""Files that a path names: globs, folders, links, pipes."""

import json
import logging
import os

import pytest

from gptneo_jax.data.documents import BadRecords, DataError, warn_once
from gptneo_jax.data.sources import check_sources, open_components
from tests.helpers.data_files import data_config, texts_of


def test_several_globs(tmp_path):
  for name in ("one", "two", "a,b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x.jsonl").write_text(json.dumps({"text": name}))
  both = f"{tmp_path}/one/*.jsonl, {tmp_path}/two/*.jsonl,{tmp_path}/*/x.jsonl"
  assert texts_of(both) == ["a,b", "one", "two"]  # each file once
  assert len(texts_of(f"{tmp_path}/one,{tmp_path}/two", "text")) == 2
  assert texts_of(f"{tmp_path}/a,b/x.jsonl") == ["a,b"]
  with pytest.raises(DataError, match=r"none/\*: no file matches"):
    check_sources(data_config(f"{both},{tmp_path}/none/*"))
  import fsspec

  fsspec.filesystem("memory").pipe("/room/x.jsonl", b"")
  with pytest.raises(DataError, match="several file systems"):
    check_sources(data_config(f"{tmp_path}/one/*,memory://room/*"))


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
    (component,) = open_components(data_config(path, kind), "train", bad_records)
    assert len(list(component.documents())) == 1
    assert bad_records.counts == {"unreadable file: cannot be read: a broken link": 1}
