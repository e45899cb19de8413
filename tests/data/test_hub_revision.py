"""ID@REVISION: which names have one, and the commit that is recorded."""

import types

import huggingface_hub
import pytest

from gptneo_jax.data import hub_revision
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.hub_revision import commit_of_folder, commit_of_model, split_revision
from gptneo_jax.data.sources import source_name
from gptneo_jax.data.tokenizer import load_tokenizer
from tests.helpers import hf_folders, hub_cache

OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch):
  """Two commits of a tokenizer, of 40 and of 61 words."""
  for commit, size, refs in ((OLD, 40, ["v1", "refs-pr"]), (NEW, 61, ["main"])):
    folder = tmp_path / commit
    folder.mkdir()
    hf_folders.word_tokenizer(folder, size)
    hf_folders.save(folder, hf_folders.config())
    hub_cache.write(tmp_path / "hub", "org/words", commit, folder, *refs)
  hub_cache.use(monkeypatch, tmp_path / "hub")


def test_names_with_a_revision(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "model@home").mkdir()
  for name, expected in {
    "org/model@v1.0": ("org/model", "v1.0"),
    "gpt2@refs/pr/3": ("gpt2", "refs/pr/3"),
    f"org/model@{OLD}": ("org/model", OLD),
    "org/model": ("org/model", None),
    "model@home": ("model@home", None),  # a folder that is there
    f"{tmp_path}/x@y": (f"{tmp_path}/x@y", None),
    "~/x@y": ("~/x@y", None),
    "./x@y": ("./x@y", None),
    "s3://user@bucket/x": ("s3://user@bucket/x", None),
  }.items():
    assert split_revision(name) == expected
  for name in ("org/model@", "@v1", "org/model@../../x", "org/model@a b", "org/model@/etc/passwd"):
    with pytest.raises(DataError, match="written ID@REVISION"):
      split_revision(name)


@pytest.mark.parametrize(
  "name, size, commit",
  [("", 61, NEW), ("@main", 61, NEW), ("@v1", 40, OLD), (f"@{OLD}", 40, OLD), (f"@{NEW}", 61, NEW)],
)
def test_a_tokenizer_of_a_revision(cached, name, size, commit):
  name = f"org/words{name}"
  assert len(load_tokenizer(name).get_vocab()) == size
  assert commit_of_model(name) == commit
  assert hub_revision.with_commit(name) == f"{name} at {commit[:7]}"


def test_a_revision_that_is_not_there(cached):
  with pytest.raises(DataError, match="tokenizer 'org/words@v9': no such folder, and not found"):
    load_tokenizer("org/words@v9")
  assert commit_of_model("org/words@v9") == commit_of_model("org/none") == ""


def test_a_folder_with_an_at_keeps_working(cached, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "words@v1").mkdir()
  hf_folders.word_tokenizer(tmp_path / "words@v1", 13)
  assert len(load_tokenizer("words@v1").get_vocab()) == 13
  assert commit_of_model("words@v1") == commit_of_model(str(tmp_path)) == ""


def test_the_commit_of_a_folder(tmp_path):
  assert commit_of_folder(f"/x/models--a--b/snapshots/{OLD}") == OLD
  assert commit_of_folder(tmp_path) == commit_of_folder("snapshots/main") == ""


def test_data_sets(monkeypatch, tmp_path):
  """The commit is asked for once, and it is what is read."""
  import datasets

  from gptneo_jax.data.documents import BadRecords
  from gptneo_jax.data.hf_datasets import HFDataset

  asked, loaded = [], []

  def info(self, name, revision=None, timeout=None):
    asked.append((name, revision))
    if name == "org/private":
      raise ConnectionError
    return types.SimpleNamespace(sha=OLD if revision == "v1" else NEW)

  def load(path, config, **options):
    loaded.append((path, options["split"], options["revision"]))
    return datasets.Dataset.from_list([{"text": "a"}])

  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
  monkeypatch.setattr(datasets, "load_dataset", load)
  hub_revision.commit_of_dataset.cache_clear()
  for path in ("org/set@v1#test", "org/set@v1", "org/set", "org/private@v2", str(tmp_path)):
    HFDataset(path, "", "", "text", BadRecords("stop"))
  assert loaded == [
    ("org/set", "test", OLD), ("org/set", "train", OLD), ("org/set", "train", NEW),
    ("org/private", "train", "v2"), (str(tmp_path), "train", None),
  ]  # fmt: skip
  assert asked == [("org/set", "v1"), ("org/set", None), ("org/private", "v2")]
  hub_revision.commit_of_dataset.cache_clear()
  assert source_name("datasets", "org/set@v1#test") == "set"


def test_what_a_repository_brings_is_not_run(tmp_path, monkeypatch):
  """Nor is it asked for at the terminal, where a yes would run it."""
  asked = []
  monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
  folder = tmp_path / "hf"
  folder.mkdir()
  (folder / "tokenization_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
  (folder / "tokenizer_config.json").write_text(
    '{"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}'
  )
  (folder / "config.json").write_text('{"model_type": "nothing"}')
  with pytest.raises(DataError, match="cannot be loaded"):
    load_tokenizer(str(folder))
  assert asked == [] and not (tmp_path / "ran").exists()
