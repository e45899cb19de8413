"""CSV and TSV: what is written is read, in each of the ways to write it, and damage is named."""

import csv
import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.tables import read_rows
from tests.helpers.data_files import assert_continues_from_every_cursor, texts_of
from tests.helpers.data_files import data_config as config_of_file


def rows_of(data: bytes, name="a.csv", *, policy="stop", **options):
  """([(location, values)], counts of bad rows)."""
  bad_records = BadRecords(policy, quiet=True)
  rows = read_rows(io.BytesIO(data), name, bad_records, **options)
  return [(location, list(row.values())) for _, location, row in rows], bad_records.counts


def values_of(data: bytes, name="a.csv", **options):
  return [values for _, values in rows_of(data, name, **options)[0]]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
columns = st.integers(1, 4)
tables = columns.flatmap(
  lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6)
)


@settings(deadline=None, max_examples=200)
@given(
  table=tables,
  line_end=st.sampled_from(["\n", "\r\n"]),
  mark=st.sampled_from(["", "\ufeff"]),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  name=st.sampled_from(["a.csv", "b.CSV.gz", "a.tsv", "a.tab"]),
)
def test_csv_and_tsv_are_read_as_they_were_written(table, line_end, mark, quoting, name):
  tabs = name.endswith(("tsv", "tab"))
  if (line_end, quoting) == ("\n", csv.QUOTE_MINIMAL):  # in which Python 3.11 quotes no \r
    table = [[cell.replace("\r", "") for cell in row] for row in table]
  # A header with the delimiter: of one column alone nothing else would tell it.
  names = [f"name {n}" for n in range(len(table[0]))]
  written = io.StringIO()
  writer = csv.writer(
    written, lineterminator=line_end, quoting=quoting, delimiter="\t" if tabs else ","
  )
  writer.writerows([names, *table])
  data = (mark + written.getvalue()).encode()
  if name.endswith(".gz"):
    data = gzip.compress(data)
  assert values_of(data, name) == table
  lines = [location.rpartition(":")[2] for location, _ in rows_of(data, name)[0]]
  # Lines end where text editors see them end, also within quotes.
  ends = [sum(cell.count("\n") for cell in row) + 1 for row in table]
  assert lines == [str(2 + sum(ends[:n])) for n in range(len(table))]


@settings(deadline=None)
@given(
  tables.filter(lambda table: len(table[0]) > 1),
  st.sampled_from(["\n", "\r\n"]),
)
def test_tsv_without_quotes_holds_them_as_they_are(table, line_end):
  table = [[cell.translate(dict.fromkeys(map(ord, "\t\r\n"))) for cell in row] for row in table]
  table.append(['5" pipe', *table[0][1:]])
  data = "".join("\t".join(row) + line_end for row in table).encode()
  assert values_of(data, "a.tsv", header=False) == table


@pytest.mark.parametrize(
  ("line", "values"),
  [
    ('3\t"It would be a mistake.\t"It would.', ["3", '"It would be a mistake.', '"It would.']),
    ('3\t"a" and "b"\tc', ["3", '"a" and "b"', "c"]),
    ('3\t"a, ""b"""\tc', ["3", 'a, "b"', "c"]),
    ('3\t"two\nlines"\tc', ["3", "two\nlines", "c"]),
  ],
)
def test_quotes_of_tsv(line, values):
  assert values_of(line.encode(), "a.tsv", header=False) == [values]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_delimiter_of_csv(name, mark):
  data = f'text{mark}label\n"a{mark} b; c"{mark}1\n'.encode()
  assert values_of(data, name) == [[f"a{mark} b; c", "1"]]


def test_utf_16_and_a_field_longer_than_the_csv_module_takes():
  text = "é" * 200_000
  assert values_of(f"text\n{text}\n".encode("utf-16")) == [[text]]


def test_columns_of_a_table_without_header_are_numbers():
  (row,) = read_rows(io.BytesIO(b"ham,hello"), "a.csv", BadRecords("stop"), header=False)
  assert row == (0, "a.csv:1", {"0": "ham", "1": "hello"})


BAD_ROWS = {
  b"only one": "1 field in a table of 2",
  b"a,b,c": "3 fields in a table of 2",
  b"ma\xe7\xe3,b": "invalid UTF-8",
  b'"a" b,c': "damaged row: ',' expected after '\"'",
  b"a\rb,c": "damaged row: a carriage return outside quotes",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_row_is_named_or_skipped(row):
  data = b'text,label\n"two\nlines",1\n\n%b\nlast,2\n' % row
  with pytest.raises(DataError) as caught:
    rows_of(data)
  assert str(caught.value).startswith(f"a.csv:5: {BAD_ROWS[row]}; data.on_bad_record")
  rows, counts = rows_of(data, policy="skip")
  assert rows == [("a.csv:2", ["two\nlines", "1"]), ("a.csv:6", ["last", "2"])]
  assert list(counts.values()) == [1]


def test_quote_that_is_never_closed():
  data = b'text,label\nfirst,1\n"second,2\nthird,3\n'
  with pytest.raises(DataError, match=r"^a\.csv:3: a quote opens here that is never closed"):
    rows_of(data)
  rows, counts = rows_of(data, policy="skip")
  assert rows == [("a.csv:2", ["first", "1"])] and list(counts.values()) == [1]


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"text,label,text", "a.csv:1: two columns are called 'text'"),
    (b'"text" x,label', "a.csv:1: damaged row"),
    (b"t\xe9xt,label", "a.csv:1: invalid UTF-8"),
  ],
)
def test_bad_header_stops_whatever_the_policy(header, message):
  with pytest.raises(DataError) as caught:
    rows_of(header + b"\na,b\n", policy="skip")
  assert str(caught.value).startswith(message)


@settings(deadline=None, max_examples=200)
@given(
  st.binary(max_size=60) | st.text(alphabet='ab"\t,\n\r;', max_size=40).map(str.encode),
  st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]),
  st.booleans(),
)
def test_no_bytes_raise_anything_but_data_error(data, name, header):
  for policy in ("stop", "skip"):
    try:
      rows_of(data, name, policy=policy, header=header)
    except DataError as error:
      assert str(error).startswith(name) and "\n" not in str(error)


def test_documents_of_a_column(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('label,body\n1,"one\nline"\n0,\n1,two\n')
  assert texts_of(path, "auto", text_key="body") == ["one\nline", "two"]
  with pytest.raises(DataError, match=r"a\.csv:2: no text: field 'text'.*has label, body"):
    texts_of(path, "auto")
  path.write_text("1,one\n0,two\n")
  assert texts_of(path, "auto", text_key="1") == ["one", "two"]


def test_documents_continue_from_every_cursor(tmp_path):
  from gptneo_jax.data.sources import open_components

  path = tmp_path / "a.csv.gz"
  written = io.StringIO()
  csv.writer(written).writerows([["text"], ["a"], ["b\nc"], [], ["d"], ["e"]])
  path.write_bytes(gzip.compress(written.getvalue().encode()))
  (component,) = open_components(config_of_file(path, "auto"), "train", BadRecords("stop"))
  assert_continues_from_every_cursor(component.source)
