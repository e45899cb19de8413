"""Reports: written, read again, as tables, side by side, with what is published beside."""

import copy
import json
import math
import sys

import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.errors import UserError
from gptneo_jax.evals import comparison, pictures, published, report

FIGURES = {
  "loss": 2.5, "perplexity": 12.182, "word_perplexity": 3.1e7, "byte_perplexity": 2.3,
  "bits_per_byte": 1.2025, "accuracy": 0.375, "documents": 1203, "tokens": 4096, "words": 900,
  "bytes": 12000,
}  # fmt: skip
REPORT = {
  "date": "2026-01-01T00:00:00+00:00",
  "arguments": {"checkpoint": "runs/mine", "quantise": "int8", "limit": 400},
  "checkpoint": {"name": "runs/mine", "step": 70, "sha256": {"70/params/a": "00"}},
  "model": PRESETS["neo_1p3b"].to_dict(),
  "parameters": 1_315_575_808,
  "versions": {"gptneo_jax": "0.1.0", "jax": "0.10"},
  "hardware": {"device": "TPU v5e (tpu)", "mesh": {"data": 8, "fsdp": 1, "tensor": 1}},
  "seed": 0,
  "tokenizer": "0123456789abcdef",
  "data": {
    "source": "pile/test.jsonl.zst", "windows": "disjoint windows of 2048 tokens",
    "by_position": [
      {"from": 1, "to": 1, "tokens": 90, "loss": 5.0},
      {"from": 257, "to": 2048, "tokens": 4006, "loss": 2.4},
    ],
    "calibration": [{"from": 0.3, "to": 0.4, "tokens": 4096, "confidence": 0.35, "accuracy": 0.37}],
    "calibration_error": 0.02,
  },
  "tasks": {
    "missing": {"mathqa": "no data"},
    "num_fewshot": {"lambada": 5},
    "items": {"lambada": 400},
    "columns": [
      {"column": "LAMBADA PPL", "task": "lambada", "metric": "perplexity", "value": 7.498},
      {"column": "LAMBADA acc", "task": "lambada", "metric": "acc", "value": 0.5723},
      {"column": "MathQA", "task": "mathqa", "metric": "acc", "value": None},
    ],
  },
  "results": {
    "data": FIGURES,
    "data/Books|3": {**FIGURES, "loss": 3.25},
    "lambada": {"perplexity": 7.498, "acc": 0.5723, "acc_stderr": 0.0068},
  },
}  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
  """The cells of each table row, by the first."""
  lines = [line for line in text.splitlines() if line.startswith("| ")]
  cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
  return {first: rest for first, *rest in cells}


def test_written_and_read(tmp_path):
  path = tmp_path / "r.json"
  assert report.write(REPORT, str(path)) == []
  assert report.read(str(path)) == REPORT
  assert (tmp_path / "r.md").read_text() == report.markdown(REPORT)
  assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.md", "r.png"]


def test_without_matplotlib_a_note(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  (note,) = report.write(REPORT, str(tmp_path / "r.json"))
  assert "r.png was not drawn: pip install matplotlib" in note
  assert not (tmp_path / "r.png").exists()


def test_tables():
  text = report.markdown(REPORT)
  assert text.startswith("# mine int8\n")
  assert "disjoint windows of 2048 tokens" in text
  table = rows(text)
  assert table["all"][:6] == ["1.2025", "2.5000", "12.182", "3.1e+07", "0.3750", "1,203"]
  assert table["Books\\|3"][1] == "3.2500"
  # the last of its rows, with the number of examples shown and of items
  assert table["lambada"] == ["acc", "0.5723", "0.0068", "5", "400"]
  assert "pile/test.jsonl.zst, the first 400 documents: disjoint" in text
  assert "The first 400 items of each." in text
  assert "- mathqa: no data" in text
  # The published row of the same size, in the same units, in the same column.
  ours, theirs = table["mine int8"], table["GPT-Neo 1.3B, published"]
  assert ours == ["-", "-", "-", "7.4980", "57.2300", "-", "-", "-", "-", "-"]
  assert theirs[3:5] == ours[3:5] and theirs[0] == "0.7527"
  assert not any("2.7B" in name for name in table)


def test_a_model_of_another_shape_stands_beside_all_released_ones():
  other = PRESETS["neo_1p3b"].replace(num_layers=2).to_dict()
  assert published.rows_beside(other) == published.ROWS
  assert all(len(row) == len(published.COLUMNS) for row in published.ROWS.values())


def changed(**places) -> dict:
  """The report with other values at 'data__windows' and the like."""
  other = copy.deepcopy(REPORT)
  for place, value in places.items():
    *path, last = place.split("__")
    part = other
    for key in path:
      part = part[key]
    part[last] = value
  return other


def test_side_by_side():
  other = changed(data__windows="windows of 2048 tokens, strided by 512", results__data__loss=2.25)
  del other["results"]["lambada"], other["tasks"]
  text = comparison.markdown([REPORT, other])
  table = rows(text)
  head = text.splitlines()[0].strip("| ").split("|")
  assert [cell.strip() for cell in head] == ["mine int8 (1)", "mine int8 (2)"]
  assert table["windows"] == [REPORT["data"]["windows"], other["data"]["windows"]]
  assert table["limit"] == ["400", "400"] and table["step"] == ["70", "70"]
  assert table["data loss"] == ["2.5000", "2.2500"]
  assert table["lambada acc, 5 shots"] == ["0.5723", "-"]
  assert table["GPT-Neo 1.3B, published"][4] == "57.2300" == table["mine int8 (1)"][4]
  assert "mine int8 (2)" not in table  # it has nothing of that table
  order = [name for name in table if name.startswith("data ")]
  assert order[0] == "data bits_per_byte"
  assert "The windows are not the same" in text and "*" not in text


@pytest.mark.parametrize(
  ("place", "name"),
  [("runs/mine/70", "mine int8"), ("org/neo-125m", "neo-125m int8"), ("70", "70 int8")],
)
def test_a_model_is_called_by_its_folder(place, name):
  assert report.name(changed(checkpoint__name=place)) == name


def test_side_by_side_with_another_tokenizer_and_other_documents():
  """What cannot be compared is marked, what can be is not."""
  other = changed(
    tokenizer="fedcba9876543210", tasks__num_fewshot__lambada=0, arguments__limit=10,
    data__text_sha256="00",
  )  # fmt: skip
  pile = {"pile_local": {"token_perplexity": 9.0, "bits_per_byte": 1.0}}
  first = changed(results=REPORT["results"] | pile)
  text = comparison.markdown([first, {**other, "results": other["results"] | pile}])
  table = rows(text)
  assert table["data perplexity"] == ["12.1820", "12.1820*"]
  assert table["data/Books\\|3 loss"] == ["3.2500", "3.2500*"]
  assert table["data bits_per_byte"] == ["1.2025", "1.2025"]
  assert table["pile_local token_perplexity"] == ["9.0000", "9.0000*"]
  assert table["pile_local bits_per_byte"] == ["1.0000", "1.0000"]
  assert table["lambada acc, 5 shots"] == ["0.5723", "-"]  # other examples, another row
  assert table["lambada acc, 0 shots"] == ["-", "0.5723"]
  for note in ("* Of another tokenizer", "The limits are not", "The documents are not"):
    assert note in text


def test_a_comparison_is_written(tmp_path):
  path = tmp_path / "both.json"
  other = changed(checkpoint__name="runs/other", tokenizer="fedcba9876543210")
  assert comparison.write([REPORT, other], ["a.json", "b.json"], str(path)) == []
  content = json.loads(path.read_text())
  assert [(c["file"], c["name"]) for c in content["compared"]] == [
    ("a.json", "mine int8"), ("b.json", "other int8"),
  ]  # fmt: skip
  assert {"task": "data", "metric": "loss", "shots": None, "values": [2.5, 2.5]} in content["rows"]
  assert (tmp_path / "both.md").read_text() == comparison.markdown([REPORT, other])
  assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
  with pytest.raises(UserError, match="is no report"):
    report.read(str(path))


def test_what_is_not_finite_is_null(tmp_path):
  """JSON has no NaN: strict readers refuse it."""
  bad = changed(
    results__lambada__acc=math.nan, results__data__loss=math.inf,
    data__calibration=[{**REPORT["data"]["calibration"][0], "accuracy": -math.inf}],
  )  # fmt: skip
  report.write(bad, str(tmp_path / "r.json"))
  (tmp_path / "old.json").write_text(json.dumps(bad))  # as it was written once, with NaN
  assert report.read(str(tmp_path / "old.json")) == report.read(str(tmp_path / "r.json"))

  def refuse(name):
    raise AssertionError(name)

  written = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
  assert written["results"]["lambada"]["acc"] is None is written["results"]["data"]["loss"]
  assert written["results"]["lambada"]["perplexity"] == 7.498
  assert set(report.not_finite(bad)) == {
    "results.lambada.acc", "results.data.loss", "data.calibration.0.accuracy"
  }  # fmt: skip
  samples = {"lambada": [{"doc_id": 0, "logprob": math.nan, "where": tmp_path}]}
  report.write_samples(samples, tmp_path / "s.jsonl")
  line = json.loads((tmp_path / "s.jsonl").read_text(), parse_constant=refuse)
  assert line == {"task": "lambada", "doc_id": 0, "logprob": None, "where": str(tmp_path)}


@pytest.mark.parametrize(
  "text", ["{", json.dumps({"loss": 1}), json.dumps([]), json.dumps({"results": {}, "config": {}})]
)
def test_what_is_no_report_is_named(text, tmp_path):
  path = tmp_path / "other.json"
  path.write_text(text)
  with pytest.raises(UserError, match=r"other\.json"):
    report.read(str(path))


def test_smoothed():
  """A mean of as many values on both sides, so that a line stays the line it is."""
  line = [3.0, 2.0, 1.0, 0.0, -1.0]
  assert pictures.smoothed(line, 3) == pytest.approx(line)
  assert pictures.smoothed([0, 3, 0, 6, 0], 3) == pytest.approx([0, 1, 3, 2, 0])
  assert len(pictures.smoothed([], 3)) == 0


def test_bars_carry_their_numbers_and_a_legend_covers_nothing(tmp_path):
  series = {"ours": {"small": 1.2, "large": (1500.0, 1400.0, 1700.0)}, "theirs": {"small": 2.5}}
  with pictures.drawing(tmp_path / "p.png", 1) as (axis,):
    pictures.bars(axis, series)
    pictures.legend(axis)
  shown = {text.get_text() for text in axis.texts}
  assert shown == {"1.20", "1,500", "2.50"}
  box, inside = axis.get_legend().get_window_extent(), axis.get_window_extent()
  assert box.y1 < inside.y0
