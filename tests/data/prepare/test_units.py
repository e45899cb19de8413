"""Units of work: the same shards whoever makes them, and only what is missing."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.documents import DataError
from gptneo_jax.data.prepare import units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import VALIDATION, TokenShards
from tests.helpers.data_rows import byte_tokenizer, write_shards


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("tokenizer"))
  byte_tokenizer().save_pretrained(path)
  return path


def texts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [f"{n} " + "".join(rng.choice(list("abç☂ \n"), rng.integers(60))) for n in range(count)]


FILES = [texts(23), [], texts(10, 1), texts(1, 2)]


def prepared(settings, folder, *parts):
  """What is warned of, and the names of the shards, in the order of their making."""
  folder, damaged, names = pathlib.Path(folder), [], []
  units.begin(settings, folder)
  for part in parts or [Part(0, 1)]:
    names += [name for name, _ in units.run(settings, folder, part, damaged.append)]
  return damaged, names


def content(folder):
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def given_files(tmp_path_factory, tokenizer_folder):
  """Settings for files of 23, 0, 10 and 1 records, and a folder that was made at once."""
  folder = tmp_path_factory.mktemp("files")
  path = write_shards(folder, FILES, ".jsonl.zst")
  settings = Settings(path, tokenizer_folder, records=5, validation_fraction=0.2)
  whole = folder / "whole"
  prepared(settings, whole)
  return settings, whole


def test_what_is_in_them(given_files):
  _, folder = given_files
  shards = TokenShards(str(folder))
  assert len(shards.shards) == 5 + 1 + 2 + 1
  held_out = [
    json.loads(line)["text"]
    for path in sorted(folder.glob(f"*{VALIDATION}"))
    for line in _lines(path)
  ]
  tokenizer, everything = byte_tokenizer(), [text for file in FILES for text in file]
  kept = [text for text in everything if text not in held_out]
  assert 3 < len(held_out) < 15 and len(kept) + len(held_out) == len(everything)
  end = shards.end_of_text
  expected = [i for text in kept for i in [*tokenizer(text).input_ids, end]]
  assert shards.ids(0, shards.tokens).tolist() == expected
  assert sum(m.documents for m in shards.manifests) == len(kept)
  assert sum(m.held_out for m in shards.manifests) == len(held_out)
  assert sum(m.text_bytes for m in shards.manifests) == sum(len(t.encode()) for t in kept)


def _lines(path):
  import zstandard

  return zstandard.ZstdDecompressor().decompress(path.read_bytes()).decode().splitlines()


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 11), seed=st.integers(0, 99))
def test_any_parts_in_any_order(given_files, tmp_path_factory, count, seed):
  settings, whole = given_files
  folder = tmp_path_factory.mktemp("parts")
  parts = [Part(n, count) for n in np.random.default_rng(seed).permutation(count).tolist()]
  _, names = prepared(settings, folder / "s", *parts)
  assert len(names) == len(set(names)) == 9
  assert content(folder / "s") == content(whole)


def test_it_goes_on_where_it_was_stopped(given_files, tmp_path):
  """After any number of shards, in the middle of a file as well."""
  settings, whole = given_files
  for made in range(9):
    folder = tmp_path / str(made)
    units.begin(settings, folder)
    run = units.run(settings, folder, Part(0, 1), lambda _: None)
    for _ in range(made):
      next(run)
    run.close()
    prepared(settings, folder, Part(1, 2), Part(0, 2))
    assert content(folder) == content(whole)


@pytest.mark.parametrize("ending", [".bin", ".idx", ".json", VALIDATION])
def test_a_damaged_shard_is_named_and_made_anew(given_files, tmp_path, ending):
  settings, whole = given_files
  folder = tmp_path / "s"
  prepared(settings, folder)
  path = next(path for path in sorted(folder.glob(f"*1{ending}")))
  bad = bytearray(path.read_bytes())
  bad[len(bad) // 2] ^= 8
  path.write_bytes(bad)
  before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.bin")}
  damaged, names = prepared(settings, folder)
  assert len(damaged) == 1 and path.name in damaged[0] and len(names) == 9
  assert content(folder) == content(whole)
  changed = [name for name in before if (folder / name).stat().st_mtime_ns != before[name]]
  assert changed == [path.name.removesuffix(ending) + ".bin"]


def test_nothing_is_read_when_all_is_there(given_files, tmp_path, monkeypatch):
  settings, _ = given_files
  prepared(settings, tmp_path)
  monkeypatch.setattr(units._File, "_make", None)
  assert len(prepared(settings, tmp_path)[1]) == 9


@pytest.mark.parametrize(
  "change, name",
  [
    ({"records": 6}, "records"), ({"validation_fraction": 0.0}, "validation_fraction"),
    ({"document": "line"}, "document"),
  ],
)  # fmt: skip
def test_other_settings_need_another_folder(given_files, tmp_path, change, name):
  settings, _ = given_files
  prepared(settings, tmp_path)
  with pytest.raises(DataError, match=f"was made with another {name}"):
    prepared(settings.__class__(**{**settings.__dict__, **change}), tmp_path)


def test_bad_records(tokenizer_folder, tmp_path):
  """Skipped records change no boundary, whoever reads them."""
  lines = [json.dumps({"text": text}) for text in texts(20)]
  lines[4:6] = ["{", ""]
  lines[12] = '{"no": 1}'
  (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
  settings = Settings(str(tmp_path / "a.jsonl"), tokenizer_folder, records=5)
  with pytest.raises(DataError, match=r"a\.jsonl:5: invalid JSON"):
    prepared(settings, tmp_path / "stop")
  skip = Settings(str(tmp_path / "a.jsonl"), tokenizer_folder, records=5, on_bad_record="skip")
  prepared(skip, tmp_path / "one")
  prepared(skip, tmp_path / "three", *(Part(n, 3) for n in range(3)))
  assert content(tmp_path / "one") == content(tmp_path / "three")
  shards = TokenShards(str(tmp_path / "one"))
  assert [m.documents + m.held_out for m in shards.manifests] == [4, 4, 4, 5]
