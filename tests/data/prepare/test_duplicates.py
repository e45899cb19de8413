"""Documents that are there already: the first of each kind stays, whatever file it is in."""

import json
import unicodedata

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.prepare import duplicates, units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import TokenShards
from tests.helpers.data_rows import byte_tokenizer, write_shards

WORDS = ["a", "b", " a", "a ", "a  b", "a\nb", "\u00e9", "e\u0301", "A", "\u2003b\t"]


LATIN = [f"w{n}" for n in range(3000)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("tokenizer"))
  byte_tokenizer().save_pretrained(path)
  return path


def normal(text):
  return " ".join(unicodedata.normalize("NFC", text).split())


def expected(files):
  """(records that stay of each file, the removed ones with the one that stays)."""
  first, stay, removed = {}, [], []
  for number, texts in enumerate(files):
    stay.append([])
    for record, text in enumerate(texts):
      kept = first.setdefault(normal(text), (number, record))
      if kept == (number, record):
        stay[-1].append(text)
      else:
        removed.append(((number, record), kept))
  return stay, removed


def found(folder):
  text = (
    zstandard.ZstdDecompressor()
    .decompressobj()
    .decompress((folder / "removed.jsonl.zst").read_bytes())
  )
  lines = [json.loads(line) for line in text.decode().splitlines()]
  number = lambda name: int(name[:4])
  return [
    ((number(x["file"]), x["record"]), (number(x["kept_file"]), x["kept_record"])) for x in lines
  ]


@settings(max_examples=25, deadline=None)
@given(
  files=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=5),
  parts=st.integers(1, 7), bucket=st.integers(1, 9),
)  # fmt: skip
def test_the_first_of_each_stays(tmp_path_factory, tokenizer_folder, files, parts, bucket):
  """Whoever reads which file, and however keys are divided; nothing else is left out."""
  folder = tmp_path_factory.mktemp("dedup")
  path = write_shards(folder, files)
  given_settings = Settings(path, tokenizer_folder, 3, validation_fraction=0.0, dedup="exact")
  names, target = units.begin(given_settings, folder / "s"), folder / "s"
  whole, duplicates._BUCKET = duplicates._BUCKET, bucket
  try:
    for number in range(parts):
      assert not duplicates.find(target, names) or number >= len(files)
      list(duplicates.hash_files(given_settings, target, Part(number, parts), pytest.fail))
    assert duplicates.find(target, names)
  finally:
    duplicates._BUCKET = whole
  stay, removed = expected(files)
  assert found(target) == removed
  list(units.run(given_settings, target, Part(0, 1), pytest.fail))
  shards, end = TokenShards(str(target)), byte_tokenizer().eos_token_id
  ids = [i for texts in stay for text in texts for i in [*byte_tokenizer()(text).input_ids, end]]
  assert shards.ids(0, shards.tokens).tolist() == ids
  counts = duplicates.summary(target)
  assert sum(one["documents"] for one in counts.values()) == sum(map(len, files))
  assert sum(one["removed"] for one in counts.values()) == len(removed)


def test_by_subset_and_again(tokenizer_folder, tmp_path):
  """A second start changes nothing, and makes damaged keys anew."""
  rows = [("x", "A"), ("y", "B"), ("x", "B"), ("x", "A"), ("z", "A")]
  lines = [json.dumps({"text": t, "meta": {"pile_set_name": s}}) + "\n" for t, s in rows]
  (tmp_path / "a.jsonl").write_text("".join(lines))
  settings = Settings(str(tmp_path / "a.jsonl"), tokenizer_folder, dedup="exact")
  folder = tmp_path / "s"
  names = units.begin(settings, folder)
  list(duplicates.hash_files(settings, folder, Part(0, 1), pytest.fail))
  assert duplicates.find(folder, names)
  assert duplicates.summary(folder) == {
    "A": {"documents": 3, "removed": 1}, "B": {"documents": 2, "removed": 1}
  }  # fmt: skip
  path = folder / "0000-a.jsonl.keys"
  before = path.read_bytes()
  path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
  said: list[str] = []
  list(duplicates.hash_files(settings, folder, Part(0, 1), said.append))
  assert len(said) == 1 and "0000-a.jsonl.keys: damaged: its checksum differs" in said[0]
  assert path.read_bytes() == before
  path = folder / "0000-a.jsonl.removed"
  before = path.read_bytes()
  path.write_bytes(before[:-1])
  assert duplicates.find(folder, names) and path.read_bytes() == before


def test_ids_are_compared_too(tokenizer_folder, tmp_path):
  ids = np.array([1, 2, 3, 1, 2, 4, 1, 2, 0], "<u2")
  (tmp_path / "d.ds").write_bytes(ids.tobytes())
  (tmp_path / "d.ds.index").write_bytes(np.array([2, 3, 5, 6, 9], "<u8").tobytes())
  settings = Settings(str(tmp_path / "*.ds"), tokenizer_folder, dedup="exact")
  names = units.begin(settings, tmp_path / "s")
  list(duplicates.hash_files(settings, tmp_path / "s", Part(0, 1), pytest.fail))
  assert duplicates.find(tmp_path / "s", names)
  assert found(tmp_path / "s") == [((0, 2), (0, 0))]


# --- near -----------------------------------------------------------------------------------------


def near(tokenizer_folder, folder, files):
  """The removed records of files of texts, with the ones that stay."""
  pytest.importorskip("rensa", reason="rensa is not installed")
  path = write_shards(folder, files)
  made = Settings(path, tokenizer_folder, dedup="near")
  names = units.begin(made, folder / "s")
  list(duplicates.hash_files(made, folder / "s", Part(0, 1), pytest.fail))
  assert duplicates.find(folder / "s", names)
  return found(folder / "s")


def test_near_ones_go_with_the_first_that_they_are_connected_to(tokenizer_folder, tmp_path):
  """Case, punctuation and a word of two hundred; what is alike to something alike; not others."""
  rng = np.random.default_rng(0)
  words = rng.choice(LATIN, 200).tolist()
  changed = lambda *places: " ".join("x" if n in places else w for n, w in enumerate(words))
  others = [" ".join(rng.choice(LATIN, 200)) for _ in range(20)]
  files = [
    [*others[:10], changed()],
    [changed(9).upper().replace(" ", ", "), *others[10:]],
    [changed(9, 50), "", "?!", "?!", "a b", "A, b."],
  ]
  assert near(tokenizer_folder, tmp_path, files) == [
    ((1, 0), (0, 10)), ((2, 0), (0, 10)), ((2, 3), (2, 2)), ((2, 5), (2, 4))
  ]  # fmt: skip


@pytest.mark.parametrize("alike", [0.5, 0.75, 0.9])
def test_how_many_near_ones_are_found(monkeypatch, alike):
  """As the numbers of bands and rows say: 1 - (1 - s^8)^14."""
  pytest.importorskip("rensa", reason="rensa is not installed")
  monkeypatch.setattr(duplicates, "_runs", lambda runs: runs)
  pairs, size = 400, 300
  shared = round(2 * alike / (1 + alike) * size)
  hits = 0
  for number in range(pairs):
    runs = [f"{number} {n}" for n in range(2 * size - shared)]
    one, other = duplicates._near([runs[:size], runs[size - shared :]])
    hits += (one == other).all(-1).any()
  expected = 1 - (1 - alike**8) ** 14
  spread = (expected * (1 - expected) / pairs) ** 0.5
  assert hits / pairs == pytest.approx(expected, abs=4 * spread + 0.02)
