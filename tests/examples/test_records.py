"""Labelled files of every kind become the same records; damage is named with file and line."""

import csv
import gzip
import io
import json
import logging

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gptneo_jax.data import BadRecords, DataError
from gptneo_jax.data.documents import warn_once
from gptneo_jax.examples.records import read_records

ROWS = [{"text": "é, um\ndois", "label": "a"}, {"text": 'the "second"', "label": "b"}]


def as_table(rows, delimiter=",") -> bytes:
  written = io.StringIO()
  writer = csv.DictWriter(written, list(rows[0]), delimiter=delimiter)
  writer.writeheader()
  writer.writerows(rows)
  return written.getvalue().encode()


def as_parquet(rows) -> bytes:
  written = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows), written)
  return written.getvalue()


FORMS = {
  "a.json": lambda rows: json.dumps(rows).encode(),
  "b.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode("utf-8-sig"),
  "c.json": lambda rows: json.dumps({"version": "1", "data": rows}, indent=1).encode(),
  "a.jsonl": lambda rows: "".join(json.dumps(row) + "\r\n" for row in rows).encode(),
  "a.jsonl.gz": lambda rows: gzip.compress(
    "".join(json.dumps(row) + "\n" for row in rows).encode()
  ),
  "lines": lambda rows: "\n\n".join(json.dumps(row) for row in rows).encode("utf-16"),
  "a.csv": as_table,
  "b.csv": lambda rows: as_table(rows, ";").decode().encode("utf-8-sig"),
  "a.tsv": lambda rows: as_table(rows, "\t"),
  "a.csv.gz": lambda rows: gzip.compress(as_table(rows)),
  "a.parquet": as_parquet,
}


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def fields_of(path, **options):
  return [record.fields for record in read_records(path, **options)]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(tmp_path, name):
  path = write(tmp_path / name, FORMS[name](ROWS))
  records = read_records(path)
  assert [record.fields for record in records] == ROWS
  assert {record.file for record in records} == {path}
  assert all(record.location.startswith(f"{path}:") for record in records)


def test_locations(tmp_path):
  tables = write(tmp_path / "a.csv", 'text\n"two\nlines"\n\nthird\n')
  array = write(tmp_path / "a.json", '[\n{"a": 1},\n{"a": 2}]')
  lines = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}')
  assert [record.location for record in read_records(tables)] == [f"{tables}:2", f"{tables}:5"]
  assert [record.location for record in read_records(array)] == [
    f"{array}: record 1", f"{array}: record 2",
  ]  # fmt: skip
  assert [record.location for record in read_records(lines)] == [f"{lines}:1", f"{lines}:3"]


def test_several_files_and_globs(tmp_path):
  for name in ("a.json", "a.csv", "a.jsonl"):
    write(tmp_path / name, FORMS[name](ROWS))
  records = read_records(f"{tmp_path}/*.json*,{tmp_path}/a.csv")
  assert [record.file.rsplit(".")[-1] for record in records] == [
    *["csv"] * 2, *["json"] * 2, *["jsonl"] * 2
  ]  # fmt: skip
  with pytest.raises(DataError, match="no file matches"):
    read_records(f"{tmp_path}/a.json,{tmp_path}/none.json")
  with pytest.raises(DataError, match="this is a folder"):
    read_records(str(tmp_path))


def test_one_object_on_several_lines_is_one_record(tmp_path):
  path = write(tmp_path / "a.json", json.dumps(ROWS[0], indent=2))
  assert fields_of(path) == ROWS[:1]
  path = write(tmp_path / "b.json", json.dumps(ROWS[0]))
  assert fields_of(path) == ROWS[:1]


def test_lines_of_text(tmp_path):
  assert fields_of(write(tmp_path / "a.txt", "one\r\n\ntwo, three")) == [
    {"text": "one"}, {"text": "two, three"}
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("content", "fields"),
  [
    (b'{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
    (b'[{"text": "a"}]', [{"text": "a"}]),
    (b"EU\tB-ORG\nsays\tO\n", [{"tokens": ["EU", "says"], "labels": ["B-ORG", "O"]}]),
    (b"plain text, of a line\n", [{"text": "plain text, of a line"}]),
    (b"", []),
  ],
)
def test_standard_input_is_told_by_its_content(monkeypatch, content, fields):
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
  records = read_records("-")
  found = [{name: record.fields[name] for name in want} for record, want in zip(records, fields)]
  assert found == fields and len(records) == len(fields)
  assert all(record.location.startswith("standard input:") for record in records)


def test_code_page_1252_is_read_and_said(tmp_path, caplog):
  warn_once.cache_clear()
  rows = [{"text": "maçã “não” €", "label": "é"}, {"text": "plain", "label": "b"}]
  for name in ("a.csv", "a.jsonl", "a.json"):
    text = json.dumps(rows, ensure_ascii=False) if name == "a.json" else ""
    if name == "a.jsonl":
      text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = text.encode("cp1252") or as_table(rows).decode().encode("cp1252")
    path = write(tmp_path / name, content)
    with caplog.at_level(logging.WARNING):
      assert fields_of(path) == rows
    assert f"{path} is not UTF-8: read as Windows' code page 1252" in caplog.text


def test_a_damaged_file_of_utf8_is_not_taken_for_another_code(tmp_path):
  path = write(
    tmp_path / "a.csv", "text\nmaçã é só\n".encode() + b"ma\xe7\xe3 \xe9\nlast \xc3\xa9\n"
  )
  with pytest.raises(DataError, match=r"a\.csv:3: invalid UTF-8"):
    read_records(path)
  assert fields_of(path, bad_records=BadRecords("skip", quiet=True)) == [
    {"text": "maçã é só"}, {"text": "last é"}
  ]  # fmt: skip
  lines = write(tmp_path / "a.txt", "maçã é só\n".encode() + b"ma\xe7\n")
  with pytest.raises(DataError, match=r"a\.txt:2: invalid UTF-8"):
    read_records(lines)
  path = write(tmp_path / "b.csv", b"text\nfine\n\x81\x8d\n")
  with pytest.raises(DataError, match=r"b\.csv:3: neither UTF-8 nor Windows' code page 1252"):
    read_records(path)


DAMAGED = {
  "line.jsonl": ('{"text": "a"}\n{"text": "b"\n{"text": "c"}\n', ":2: invalid JSON", 2),
  "value.jsonl": ('{"text": "a"}\n["b"]\n', ":2: not an object with fields (it is a list)", 1),
  "surrogate.jsonl": ('{"text": ["\\ud800"]}\n{"text": "b"}\n', ":1: invalid UTF-8 or a lone", 1),
  "array.json": ('[{"text": "a"}, {"text": "b"]', ": after record 1: invalid JSON", 1),
  "names.json": ('["a", {"text": "b"}]', ": record 1: not an object with fields", 1),
  "row.csv": ("text,label\na,1\nb\nc,2\n", ":3: 1 field in a table of 2", 2),
  "binary": (b"\x89PNG\0\0", ": binary file", 0),
  "cut.csv.gz": (gzip.compress(b"text\n" + b"a\n" * 99)[:-9], ": the gzip file is cut off", None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_and_skipped_where_asked(tmp_path, name):
  content, message, left = DAMAGED[name]
  path = write(tmp_path / name, content)
  with pytest.raises(DataError) as caught:
    read_records(path)
  assert str(caught.value).startswith(path + message) and "\n" not in str(caught.value)
  bad_records = BadRecords("skip", quiet=True)
  records = read_records(path, bad_records=bad_records)
  assert left is None or len(records) == left
  assert sum(bad_records.counts.values()) == 1


def test_damaged_object_of_several_lines(tmp_path):
  path = write(tmp_path / "a.json", '{\n "data": [\n  {"paragraphs": []}\n  oops\n ]\n}')
  with pytest.raises(DataError, match=r"a\.json:4: invalid JSON"):
    read_records(path)


def test_data_set_of_the_datasets_library(tmp_path):
  """Labels that it stores as numbers have their names, also in its parquet files; -1 is none."""
  import datasets

  names = datasets.ClassLabel(names=["ham", "spam"])
  features = datasets.Features({"text": datasets.Value("string"), "label": names, "tags": [names]})
  rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
  data = datasets.Dataset.from_dict(rows, features=features)
  datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(f"{tmp_path}/data")
  records = read_records(f"{tmp_path}/data", source="datasets")
  data.to_parquet(f"{tmp_path}/a.parquet")
  expected = [
    {"text": "a", "label": "spam", "tags": ["ham", "spam"]},
    {"text": "b", "label": "ham", "tags": []},
    {"text": "c", "label": None, "tags": ["spam"]},
  ]
  assert [record.fields for record in records] == expected
  assert fields_of(f"{tmp_path}/a.parquet") == expected
  assert records[2].location == f"{tmp_path}/data#train[0]:3"
  assert len(read_records(f"{tmp_path}/data#test", source="datasets")) == 1
  with pytest.raises(DataError, match="no such folder or file"):
    read_records(f"{tmp_path}/none", source="datasets")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": texts, "the label": texts}), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows):
  folder = tmp_path_factory.mktemp("rows")
  for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.tsv", "a.csv.gz", "a.parquet"):
    assert fields_of(write(folder / name, FORMS[name](rows))) == rows, name


@settings(deadline=None, max_examples=200)
@given(
  st.binary(max_size=80) | st.text(alphabet='{}[]":,\t\n\ra#O- B', max_size=60).map(str.encode),
  st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.conll", "a.txt", "a", "a.json.gz"]),
)
def test_no_bytes_raise_anything_but_data_error(tmp_path_factory, data, name):
  path = write(tmp_path_factory.mktemp("bytes") / name, data)
  for policy in ("stop", "skip"):
    try:
      read_records(path, bad_records=BadRecords(policy, quiet=True))
    except DataError as error:
      assert str(error).startswith(path) and "\n" not in str(error)


# Of the README beside them: records, and tokens where it says how many.
SHARED = {
  "sms_spam.tsv": (5574, ["0", "1"]),
  "wnut17/train.conll": (3394, 62730),
  "wnut17/dev.conll": (1009, 15733),
  "wnut17/test.conll": (1287, 23394),
  "instruct/instruction-data.json": (1100, ["instruction", "input", "output"]),
  "instruct/self_instruct_seed_alpaca.json": (175, ["instruction", "input", "output"]),
  "pairs/inferbr_nli_pt/train.csv": (3500, ["", "premise", "hypothesis", "label"]),
  "pairs/inferbr_nli_pt/val.csv": (646, ["", "premise", "hypothesis", "label"]),
  "pairs/inferbr_nli_pt/test.csv": (1758, ["", "premise", "hypothesis", "label"]),
  "pairs/boolq_en/dev_800.jsonl": (800, ["question", "answer", "passage"]),
  "pairs/sts_captions_en/stsb-en-train.csv": (497, ["0", "1", "2"]),
  "pairs/sts_captions_en/stsb-en-dev.csv": (118, ["0", "1", "2"]),
  "pairs/sts_captions_en/stsb-en-test.csv": (135, ["0", "1", "2"]),
  "pairs/sts_captions_en/sts2016_postediting.tsv": (244, ["0", "1", "2"]),
  "classification/banking77_en/train.csv": (2847, ["text", "category"]),
  "classification/banking77_en/test.csv": (3080, ["text", "category"]),
  "classification/nlupp_banking_en/train.json": (1867, ["text", "intents"]),
  "classification/nlupp_banking_en/test.json": (204, ["text", "intents"]),
  "qa/xquad_en/xquad.en.json": (1190, ["id", "question", "is_impossible", "answers", "context"]),
  "qa/squad2_a/dev-v2.0-a.json": (2170, ["id", "question", "is_impossible", "answers", "context"]),
  "choice/arc_easy_en/ARC-Easy-validation.jsonl": (570, ["id", "question", "choices", "answerKey"]),
  "choice/pira_mcqa_en/MCQA-validation.csv": (225, ["id", "question", "A", "B", "C", "D", "E"]),
  "choice/pira_mcqa_en/MCQA-test.csv": (227, ["id", "question", "A", "B", "C", "D", "E"]),
  "chat/trivia_qa_en/football.json": (383, ["question", "answer", "choices"]),
  "chat/trivia_qa_en/sports.json": (2840, ["question", "answer", "choices"]),
  "chat/trivia_qa_en/general_first2000.json": (2000, ["question", "answer", "choices"]),
  "chat/pira_qa_pt/pira_qa_pt.json": (1779, ["id", "question", "answer"]),
  "ner_pt/pt_bosque-ud-dev.conll": (1172, 28447),
  "ner_pt/pt_bosque-ud-dev.iob2": (1172, 28447),
  "ner_pt/pt_bosque-ud-test.conll": (1167, 27604),
  "text_pt/bosque_news_pt.txt": (5000, ["text"]),
  "lambada_test.jsonl": (5153, ["text"]),
  "hellaswag_val_400.jsonl": (400, ["ind", "query", "choices", "gold"]),
  "piqa_val_400.jsonl": (400, ["goal", "sol1", "sol2", "label"]),
}


@pytest.mark.parametrize("name", SHARED)
def test_the_development_data_are_read_as_their_readme_counts_them(shared_data, name):
  number, known = SHARED[name]
  path = str(shared_data / "tasks" / name)
  records = read_records(path, header=isinstance(known, int) or "0" not in known)
  assert len(records) == number
  assert all(record.location.startswith(path) for record in records)
  if isinstance(known, int):
    assert sum(len(record.fields["tokens"]) for record in records) == known
    assert all(len(each.fields["tokens"]) == len(each.fields["labels"]) for each in records)
  else:
    assert list(records[0].fields)[: len(known)] == known


def test_two_forms_of_the_same_sentences_are_equal(shared_data):
  folder = shared_data / "tasks/ner_pt"
  one, other = (read_records(f"{folder}/pt_bosque-ud-dev.{end}") for end in ("conll", "iob2"))
  of = lambda records: [(each.fields["tokens"], each.fields["labels"]) for each in records]
  assert of(one) == of(other)


def test_labels_of_the_spam_collection(shared_data):
  records = read_records(str(shared_data / "tasks/sms_spam.tsv"), header=False)
  labels = [record.fields["0"] for record in records]
  assert (labels.count("ham"), labels.count("spam")) == (4827, 747)


def test_questions_without_an_answer(shared_data):
  records = read_records(str(shared_data / "tasks/qa/squad2_a/dev-v2.0-a.json"))
  assert sum(record.fields["is_impossible"] for record in records) == 1108
  for record in records:
    answers, context = record.fields["answers"], record.fields["context"]
    assert bool(answers["text"]) != record.fields["is_impossible"]
    for text, start in zip(answers["text"], answers["answer_start"]):
      assert context[start : start + len(text)] == text
