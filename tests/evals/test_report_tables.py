"""The tables of a report, and the published figures."""

import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.evals import published, report_tables
from tests.helpers.reports import REPORT, changed, rows


def test_tables():
  text = report_tables.markdown(REPORT)
  assert text.startswith("# mine int8\n")
  assert "disjoint windows of 2048 tokens" in text
  table = rows(text)
  assert table["all"][:6] == ["1.2025", "2.5000", "12.182", "3.1e+07", "0.3750", "1,203"]
  assert table["Books\\|3"][1] == "3.2500"
  # Its last row, with the numbers of few-shot examples and of items.
  assert table["lambada"] == ["acc", "0.5723", "0.0068", "5", "400"]
  assert "pile/test.jsonl.zst, the first 400 documents: disjoint" in text
  assert "The first 400 items of each." in text
  assert "- mathqa: no data" in text
  # The published row of the model of the same shape has the same columns and units.
  ours, theirs = table["mine int8"], table["GPT-Neo 1.3B, published"]
  assert ours == ["-", "-", "-", "7.4980", "57.2300", "-", "-", "-", "-", "-"]
  assert theirs[3:5] == ours[3:5] and theirs[0] == "0.7527"
  assert not any("2.7B" in name for name in table)


def test_a_model_of_another_shape_is_compared_with_all_released_ones():
  other = PRESETS["neo_1p3b"].replace(num_layers=2).to_dict()
  assert published.rows_for(other) == published.ROWS
  assert all(len(row) == len(published.COLUMNS) for row in published.ROWS.values())


@pytest.mark.parametrize(
  ("place", "name"),
  [("runs/mine/70", "mine int8"), ("org/neo-125m", "neo-125m int8"), ("70", "70 int8")],
)
def test_a_model_is_called_by_its_folder(place, name):
  assert report_tables.name(changed(checkpoint__name=place)) == name
