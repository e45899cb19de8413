"""Splits: copies are on one side, none is silently empty, and what is repeated is said."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data import DataConfig, DataError
from gptneo_jax.data.splits import Shares
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.splits import load_splits, split

ROLES = (Role("text"), Role("label", needed="training"), Role("id", needed="never"))


def key(record):
  return record.fields["text"]


def write(path, rows):
  records = [{"text": text, "label": label, "n": n} for n, (text, label) in enumerate(rows)]
  path.write_text(json.dumps(records))
  return str(path)


def load(path, roles=ROLES, key=key, **options):
  settings = {"source": "auto", "validation_fraction": 0.0} | options
  return load_splits(DataConfig(path=str(path), **settings), roles, key)


def texts(records):
  return [record.fields["text"] for record in records]


@given(
  st.lists(st.text("abc", max_size=3), max_size=60),
  st.sampled_from([(0.0, 0.0), (0.2, 0.1), (0.5, 0.5)]),
)
def test_a_split_is_a_partition_by_key_in_order(names, shares):
  records = [Record({"text": name}, f"f:{n}") for n, name in enumerate(names)]
  parts = split(records, Shares(*shares), key)
  assert sorted(each.location for part in parts for each in part) == sorted(
    each.location for each in records
  )
  for part in parts:
    assert [records.index(each) for each in part] == sorted(records.index(each) for each in part)
  kinds = [set(texts(part)) for part in parts]
  assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])


def test_files_of_their_own(tmp_path):
  paths = [
    write(tmp_path / f"{name}.json", [(f"{name} {n}", n % 2) for n in range(20)])
    for name in ("train", "val", "test")
  ]
  splits = load(
    paths[0], validation_path=paths[1], test_path=paths[2],
    validation_fraction=0.5, test_fraction=0.4,
  )  # fmt: skip
  assert [len(part) for part in splits[:3]] == [20, 20, 20] and splits.notes == []
  assert texts(splits.test)[0] == "test 0"


def test_shares_of_one_file(tmp_path):
  path = write(tmp_path / "a.json", [(str(n), 0) for n in range(1000)])
  splits = load(path, validation_fraction=0.1, test_fraction=0.05)
  assert [len(part) for part in splits[:3]] == [853, 92, 55] and splits.notes == []
  again = load(path, validation_fraction=0.1, test_fraction=0.05)
  assert again == splits


def test_validation_holds_at_least_one(tmp_path):
  path = write(tmp_path / "a.json", [(str(n), 0) for n in range(20)])
  splits = load(path, validation_fraction=0.005, test_fraction=0.001)
  assert [len(part) for part in splits[:3]] == [19, 1, 0]
  assert splits.notes == [
    "data.validation_fraction=0.005 gives no record by its hash: the 1 record of the smallest"
    " hashes validate",
    "data.test_fraction=0.001 gives no test record",
  ]


@pytest.mark.parametrize("rows", [[("a", 0)], [("a", 0), ("a", 1)]])
def test_too_few_to_hold_any_out(tmp_path, rows):
  path = write(tmp_path / "a.json", rows)
  with pytest.raises(DataError, match=r"a\.json: data\.validation_fraction=0\.1 of \d record") as e:
    load(path, validation_fraction=0.1)
  assert "data.validation_path" in str(e.value) and "\n" not in str(e.value)
  assert len(load(path).train) == len(rows)


@pytest.mark.parametrize("name", ["path", "validation_path", "test_path"])
def test_a_file_without_a_record(tmp_path, name):
  paths = {"path": write(tmp_path / "a.json", [("a", 0)])}
  paths[name] = write(tmp_path / "empty.json", [])
  with pytest.raises(DataError, match=r"empty\.json holds no record"):
    load(**paths)


def test_repeated_records_are_counted(tmp_path):
  path = write(tmp_path / "a.json", [("a", 0), ("b", 0), ("a", 0), ("b", 1), ("a", 0), ("c", 0)])
  splits = load(path)
  assert len(splits.train) == 6
  assert splits.notes == [
    f"3 of 6 training records repeat an earlier one, the first: {path}: record 3, as {path}:"
    f" record 1; 1 with another label or answer, the first: {path}: record 4, as {path}: record 2"
  ]


def test_records_on_both_sides_are_counted(tmp_path):
  path = write(tmp_path / "a.json", [("a", 0), ("b", 0), ("c", 0)])
  val = write(tmp_path / "b.json", [("x", 0), ("c", 1), ("a", 0)])
  test = write(tmp_path / "c.json", [("d", 0), ("b", 0)])
  splits = load(path, validation_path=val, test_path=test)
  assert splits.notes == [
    f"2 of 3 validation records have the text, prompt or context of a training record, the first:"
    f" {val}: record 2, as {path}: record 3; 1 with another label or answer, the first: {val}:"
    f" record 2, as {path}: record 3",
    f"1 of 2 test records have the text, prompt or context of a training record, the first: {test}:"
    f" record 2, as {path}: record 2",
  ]


def test_questions_about_one_context_are_no_copies(tmp_path):
  roles = (Role("question"), Role("context"), Role("answer", needed="training"))
  rows = [{"question": f"q{n}", "context": f"c{n // 4}", "answer": "a"} for n in range(40)]
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  splits = load(path, roles, lambda record: record.fields["context"], validation_fraction=0.3)
  contexts = [{each.fields["context"] for each in part} for part in splits[:2]]
  assert contexts[0] and contexts[1] and not contexts[0] & contexts[1]
  assert splits.notes == []


def test_what_is_skipped_is_noted(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "a", "label": 1}\nbroken\n{"text": "b"}\n{"text": "c", "label": 0}\n')
  with pytest.raises(DataError, match=r"a\.jsonl:2: invalid JSON"):
    load(path)
  splits = load(path, on_bad_record="skip")
  assert texts(splits.train) == ["a", "c"]
  assert splits.notes == ["skipped in the data: 1 x invalid JSON, 1 x no field 'label'"]


def test_a_table_without_header(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text('ham\t"Hi" she said\nspam\tfree, free\n')
  splits = load(path, columns="text=1,label=0")
  assert [each.fields for each in splits.train] == [
    {"text": '"Hi" she said', "label": "ham"}, {"text": "free, free", "label": "spam"},
  ]  # fmt: skip
  with pytest.raises(DataError, match=r"there are 'ham'.*without header the fields are numbers"):
    load(path)


def test_data_set_of_the_datasets_library(tmp_path):
  import datasets

  rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
  data = datasets.Dataset.from_dict(rows)
  datasets.DatasetDict({"train": data, "test": data}).save_to_disk(f"{tmp_path}/data")
  splits = load(f"{tmp_path}/data", source="datasets", validation_path=f"{tmp_path}/data#test")
  assert texts(splits.train) == texts(splits.validation) == ["a", "b", "c"]
  assert splits.notes[0].startswith("3 of 3 validation records")


@pytest.mark.parametrize("source", ["stdlib", "mixture"])
def test_sources_without_labels(source):
  mixture = ((1.0, "auto", "a"),) if source == "mixture" else ()
  with pytest.raises(DataError, match="no labelled examples; 'auto' reads"):
    load("", source=source, mixture=mixture)


@settings(deadline=None, max_examples=5)
@given(st.sampled_from(["inferbr_nli_pt", "banking77_en"]))
def test_development_data_share_nothing_that_is_not_said(shared_data, name):
  folder = next((shared_data / "tasks").glob(f"*/{name}"))
  roles = (Role("text", ("premise",)), Role("other", ("hypothesis",), needed="never"))
  splits = load(
    f"{folder}/train.csv",
    roles,
    lambda record: json.dumps(record.fields),
    test_path=f"{folder}/test.csv",
    validation_fraction=0.1,
  )
  train, test = ({json.dumps(each.fields) for each in part} for part in (splits.train, splits.test))
  assert bool(train & test) == any("test records" in note for note in splits.notes)
