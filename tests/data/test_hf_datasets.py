"""Sources of the `datasets` library, all local."""

import json

import pytest

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.evaluation import evaluation_documents
from gptneo_jax.data.sources import check_sources, open_components


def write_lines(path, texts, subset):
  records = ({"text": text, "meta": {"pile_set_name": subset}} for text in texts)
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


def hub_config(path, **options):
  return DataConfig(source="datasets", path=str(path), validation_fraction=0, **options)


def test_datasets_folder_of_json_files(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  folder = tmp_path / "records"
  folder.mkdir()
  for name in "ab":
    write_lines(folder / f"{name}.jsonl", [f"{name}{n}" for n in range(5)], "Sub")
  documents = list(evaluation_documents(hub_config(folder), "train"))
  assert [document.text for document in documents] == [f"{n}{i}" for n in "ab" for i in range(5)]
  assert documents[0].subset == "Sub"
  source = open_components(hub_config(folder), "train", BadRecords("stop"))[0].source
  assert len(source.shards) == 2
  rest = [document.text for _, document in source.read(1, (3, 0), lambda record: True)]
  assert rest == ["b3", "b4"]


def test_datasets_saved_to_disk(tmp_path):
  import datasets

  rows = [{"content": f"text {number}"} for number in range(6)]
  data = datasets.Dataset.from_list(rows)
  data.save_to_disk(str(tmp_path / "one"))
  datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "two"))
  for path in (f"{tmp_path}/one", f"{tmp_path}/two#test"):
    documents = list(evaluation_documents(hub_config(path, text_key="content"), "train"))
    assert [document.text for document in documents] == [row["content"] for row in rows]
  with pytest.raises(DataError, match=r"\[0\]:1: no text"):
    list(evaluation_documents(hub_config(f"{tmp_path}/one"), "train"))


def test_datasets_that_is_not_there(tmp_path):
  config = hub_config(tmp_path / "none")
  with pytest.raises(DataError, match="none"):
    check_sources(config)
  with pytest.raises(DataError, match="none"):
    evaluation_documents(config, "train")


def test_datasets_of_one_file(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  (tmp_path / "a[1].csv").write_text('text,n\na,1\n"b, c",2\n')
  (tmp_path / "other.csv").write_text("text\nnot this\n")
  write_lines(tmp_path / "b.jsonl", ["x", "", "y"], "Sub")
  for path, expected in (("a[1].csv", ["a", "b, c"]), ("b.jsonl#test", ["x", "y"])):
    documents = evaluation_documents(hub_config(tmp_path / path), "train")
    assert [document.text for document in documents] == expected
  monkeypatch.chdir(tmp_path)
  assert len(list(evaluation_documents(hub_config("b.jsonl"), "train"))) == 2
