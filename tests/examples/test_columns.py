"""Fields by role, of data.columns, by name and alias; the error names what is there instead."""

import pytest

from gptneo_jax.data import BadRecords, DataError
from gptneo_jax.examples.columns import Role, by_role, has_header, parse
from gptneo_jax.examples.records import Record

ROLES = (
  Role("text", ("message", "sentence")),
  Role("label", ("category", "label.name"), needed="training"),
  Role("id", needed="never"),
)


def records(*fields, file="a.csv"):
  return [Record(each, f"{file}:{number}", file) for number, each in enumerate(fields, 2)]


def fields_of(*fields, columns="", roles=ROLES, **options):
  return [each.fields for each in by_role(records(*fields), roles, columns, **options)]


@pytest.mark.parametrize(
  ("fields", "columns"),
  [
    ({"text": "t", "label": "l"}, ""),
    ({"text": "t", "message": "other", "label": "l", "more": 1}, ""),
    ({"sentence": "t", "category": "l"}, ""),
    ({"Text": "t", "LABEL": "l"}, ""),
    ({"text": "t", "label": {"name": "l"}}, "label=label.name"),
    ({"text": "t", "Label": "l", "category": None}, ""),
    ({"body": "t", "text": "other", "kind": "l"}, "text=body, label=kind"),
    ({"0": "l", "1": "t"}, "text=1,label=0"),
    ({"a": {"b": {"c": "t"}}, "x.y": "l"}, "text=a.b.c,label=x.y"),
  ],
)
def test_fields_become_roles(fields, columns):
  (found,) = fields_of(fields, columns=columns)
  assert {name: found[name] for name in ("text", "label")} == {"text": "t", "label": "l"}


def test_other_fields_keep_their_names():
  rows = {"body": "t", "label": "l", "text": "other", "n": 1, "note": None}
  assert fields_of(rows, columns="text=body") == [{"text": "t", "label": "l", "n": 1, "note": None}]


def test_a_list_of_fields():
  roles = (Role("choices", ("endings", "sol1+sol2")),)
  assert fields_of({"sol1": "a", "sol2": "b"}, roles=roles) == [{"choices": ["a", "b"]}]
  nested = {"A": "a", "B": "b", "C": {"d": "c"}}
  assert fields_of(nested, roles=roles, columns="choices=A+B+C.d") == [
    {"choices": ["a", "b", "c"], "C": {"d": "c"}}
  ]
  fewer = {"A": "a", "B": "b", "C": None}
  assert fields_of(nested | {"C": "c"}, fewer, roles=roles, columns="choices=A+B+C") == [
    {"choices": ["a", "b", "c"]}, {"choices": ["a", "b"]},
  ]  # fmt: skip
  assert fields_of({"a+b": ["c"]}, roles=roles, columns="choices=a+b") == [{"choices": ["c"]}]
  with pytest.raises(DataError, match=r"no column 'A\+D'.*there are 'A', 'B'"):
    fields_of({"A": "a", "B": "b"}, roles=roles, columns="choices=A+D")


def test_location_and_order_stay():
  given = records({"text": "a", "label": 0}, {"text": "b", "label": 1})
  found = by_role(given, ROLES, "")
  assert [(each.location, each.file) for each in found] == [
    (each.location, each.file) for each in given
  ]


def test_each_file_has_its_own_names():
  given = records({"text": "a", "label": "x"}, file="a.csv")
  given += records({"message": "b", "category": "y", "id": 3}, file="b.csv")
  assert [each.fields for each in by_role(given, ROLES, "")] == [
    {"text": "a", "label": "x"},
    {"text": "b", "label": "y", "id": 3},
  ]


def test_within_a_file_a_role_is_one_field():
  with pytest.raises(DataError, match=r"^a\.csv:3: no field 'text' \(it has 'message', 'label'\)"):
    fields_of({"text": "a", "label": 0}, {"message": "b", "label": 1})


def test_what_only_training_needs():
  assert fields_of({"text": "a"}, labelled=False) == [{"text": "a"}]
  assert fields_of({"text": "a", "label": None}, labelled=False) == [{"text": "a"}]
  assert fields_of({"text": "a", "label": 1}, labelled=False) == [{"text": "a", "label": 1}]
  with pytest.raises(DataError, match=r"^a\.csv: the field 'label' is null in every record"):
    fields_of({"text": "a", "label": None})


def test_a_record_that_lacks_something_is_skipped_where_asked():
  rows = ({"text": "a", "label": 0}, {"text": "b", "label": None}, {"text": "c", "label": 1})
  with pytest.raises(DataError, match=r"^a\.csv:3: no field 'label' \(it has 'text', 'label'\)"):
    fields_of(*rows)
  bad_records = BadRecords("skip", quiet=True)
  assert [row["text"] for row in fields_of(*rows, bad_records=bad_records)] == ["a", "c"]
  assert sum(bad_records.counts.values()) == 1


@pytest.mark.parametrize(
  ("fields", "columns", "message"),
  [
    (
      {"mesage": "a", "label": 1}, "",
      "a.csv: no column 'text' (or message, sentence); there are 'mesage', 'label'; did you mean"
      " mesage?; data.columns=text=FIELD says which it is; of a table without header the fields"
      " are numbers from 0",
    ),
    (
      {"message": "a", "label": 1}, "text=mesage",
      "a.csv: no column 'mesage', which data.columns gives as text; there are 'message', 'label';"
      " did you mean message?",
    ),
    (
      {"ham": "a", "Go until jurong point, crazy.. Available only in": "b"}, "",
      "there are 'ham', 'Go until jurong point, crazy.. Available…';",
    ),
    ({"0": "ham", "1": "hello"}, "text=1,label=2", "no column '2', which data.columns gives as"),
    ({"text": "a"}, "txt=a", "data.columns: there is no 'txt' here; did you mean text?; it names"),
    ({"text": "a"}, "text", "data.columns: 'text' is not ROLE=FIELD"),
    ({"text": "a"}, "text=", "data.columns: 'text=' is not ROLE=FIELD"),
    ({"text": "a"}, "text=a,text=b", "data.columns: 'text' is given twice"),
    (dict.fromkeys(map(str, range(20)), 1), "", "'11' and 8 more"),
    ({}, "", "there are no fields"),
  ],
)  # fmt: skip
def test_what_is_not_there(fields, columns, message):
  with pytest.raises(DataError) as caught:
    fields_of(fields, columns=columns)
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_records_have_no_missing_columns():
  assert by_role([], ROLES, "text=a") == []


@pytest.mark.parametrize(
  ("columns", "header"),
  [
    ("", True),
    ("text=1,label=0", False),
    ("text=1+2", False),
    ("text=body", True),
    ("a=1,b=c", True),
  ],
)
def test_numbers_alone_mean_a_table_without_header(columns, header):
  assert has_header(columns) == header


def test_parse():
  assert parse("text=a=b , id=c", ROLES) == {"text": "a=b", "id": "c"}
  assert parse("", ROLES) == {}
