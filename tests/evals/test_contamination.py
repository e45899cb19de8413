"""Overlap of evaluation items with training text, against plain sets of words."""

import gzip
import json
import pathlib
import random
import tempfile

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.errors import UserError
from gptneo_jax.evals import contamination, word_ngrams
from tests.helpers.plain_words import words

ODD = (
  "İSTANBUL ΟΔΥΣΣΕΎΣ ẞ straße é e\u0301 — “a”…b don't_do-it १२ x\u00a0y\u2003z ½ 한 \U00010400 \x00"
)


def write(path, texts):
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
  return str(path)


def ngrams(text, n):
  found = words(text)
  return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


def naive(items, texts, path, n):
  overlaps = []
  for name, text in items:
    own = set(ngrams(text, n))
    met = [
      (ngram, f"{path}:{line}")
      for line, training in enumerate(texts, 1)
      for ngram in ngrams(training, n)
      if ngram in own
    ]
    if met:
      shared = len({ngram for ngram, _ in met})
      overlaps.append((name, *met[0], shared))
  return overlaps


def found(report):
  keys = ("item", "ngram", "train_location", "shared_ngrams")
  return [tuple(entry[key] for key in keys) for entry in report["overlaps"]]


TEXT = st.lists(
  st.sampled_from(["a", "b", "A", "ab", "c.", "-", "d'", "  ", "\n", "É", "İ", "1", ""]),
  max_size=25,
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4),
       st.lists(TEXT.filter(bool), min_size=1, max_size=4),
       st.integers(1, 4), st.sampled_from([1, 7, 1000]), st.booleans())  # fmt: skip
@example(["a b"], ["a", "b"], 2, 1000, False)  # across two documents
@example([ODD], [ODD.lower()], 4, 7, False)
@example(["a a a b a"], ["a a b"], 2, 1, True)
def test_equals_plain_sets(items, texts, n, piece, collide):
  """For any size of the pieces, and even if all hashes are equal."""
  items = [(f"item {i}", text) for i, text in enumerate(items)]
  with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
    patch.setattr(contamination, "_PIECE", piece)
    if collide:
      patch.setattr(word_ngrams, "_mixed", np.zeros_like)
    path = write(pathlib.Path(folder) / "train.jsonl", texts)
    report = contamination.find(items, path, n=n, progress=False)
    expected = naive(items, texts, path, n)
  assert found(report) == expected
  assert report["items"] == len(items) and report["overlapping"] == len(expected)
  assert report["share"] == len(expected) / len(items)
  assert report["too_short"] == sum(len(words(text)) < n for _, text in items)
  assert report["training_documents"] == len(texts)
  assert report["training_bytes"] == sum(len(text.encode()) for text in texts)


def test_thirteen_words_of_a_long_text(tmp_path):
  """Documents longer than a piece, with the shared words wherever pieces may be split."""
  rng = random.Random(0)
  text = [f"w{rng.randrange(10**6)}" for _ in range(40000)]
  path = write(tmp_path / "train.jsonl", ["something else", " ".join(text)])
  assert len(" ".join(text)) > 2 * contamination._PIECE
  places = range(0, len(text) - 13, 7)
  items = [(str(i), ", ".join(text[i : i + 13]).upper()) for i in places]
  items += [("twelve", " ".join(text[:12])), ("broken", " ".join([*text[:12], "x", *text[12:24]]))]
  report = contamination.find(items, path, progress=False)
  assert (report["overlapping"], report["too_short"]) == (len(places), 1)
  assert [entry["item"] for entry in report["overlaps"]] == [str(i) for i in places]
  assert {entry["train_location"] for entry in report["overlaps"]} == {f"{path}:2"}


def test_sources(tmp_path):
  text = "one two three four five"
  line = json.dumps({"text": text, "meta": {"pile_set_name": "Books"}}).encode() + b"\n"
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "nothing"}\n' + line))
  (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line))
  (tmp_path / "c.txt").write_text(text.replace(" ", "\n"))
  for name, subset in (("a.jsonl.gz", "Books"), ("b.jsonl.zst", "Books"), ("*.txt", "text")):
    report = contamination.find([("item", text.title())], f"{tmp_path}/{name}", n=5, progress=False)
    (entry,) = report["overlaps"]
    where = str(tmp_path / name.replace("*", "c"))
    assert entry["train_location"] == where + (":2" if name.startswith("a") else ":1")
    assert (entry["ngram"], entry["shared_ngrams"]) == (text, 1)
    if subset == "Books":
      assert entry["train_subset"] == subset
  both = contamination.find([("item", text)], f"{tmp_path}/*.jsonl.*", n=5, progress=False)
  assert both["training_documents"] == 3
  assert both["overlaps"][0]["train_location"] == f"{tmp_path}/a.jsonl.gz:2"  # the first


def test_bad_records_are_counted(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text('{"text": "a b"}\nnot JSON\n{"title": "x"}\n{"text": "c d"}\n')
  report = contamination.find([("item", "c d")], str(path), n=2, progress=False)
  assert report["training_documents"] == 2 and report["overlapping"] == 1
  assert sum(report["bad_records"].values()) == 2 and "invalid JSON" in report["bad_records"]


def test_progress_bar(tmp_path, capsys):
  path = write(tmp_path / "train.jsonl", ["a b"] * 3)
  contamination.find([("item", "a b")], path, n=2)
  assert "training text" in capsys.readouterr().err


def test_mistakes(tmp_path):
  path = write(tmp_path / "train.jsonl", [])
  with pytest.raises(UserError, match=r"train\.jsonl: no document"):
    contamination.find([("item", "a")], path, progress=False)
  with pytest.raises(UserError, match="no file matches"):
    contamination.find([("item", "a")], str(tmp_path / "*.txt"), progress=False)
  with pytest.raises(UserError, match="no evaluation item"):
    contamination.find([], path, progress=False)
  with pytest.raises(UserError, match="at least 1"):
    contamination.find([("item", "a")], path, n=0, progress=False)
