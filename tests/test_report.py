"""Reports: written, read again, as tables, side by side, with what is published beside."""

import copy
import json
import sys

import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.errors import UserError
from gptneo_jax.evals import published, report

FIGURES = {
  "loss": 2.5, "perplexity": 12.182, "word_perplexity": 3.1e7, "byte_perplexity": 2.3,
  "bits_per_byte": 1.2025, "accuracy": 0.375, "documents": 1203, "tokens": 4096, "words": 900,
  "bytes": 12000,
}  # fmt: skip
REPORT = {
  "date": "2026-01-01T00:00:00+00:00",
  "arguments": {"checkpoint": "runs/mine", "quantise": "int8"},
  "checkpoint": {"name": "runs/mine", "step": 70, "sha256": {"70/params/a": "00"}},
  "model": PRESETS["neo_1p3b"].to_dict(),
  "parameters": 1_315_575_808,
  "versions": {"gptneo_jax": "0.1.0", "jax": "0.10"},
  "hardware": {"device": "TPU v5e (tpu)", "mesh": {"data": 8, "fsdp": 1, "tensor": 1}},
  "seed": 0,
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
  assert table["all"][:6] == ["2.5000", "12.182", "1.2025", "3.1e+07", "0.3750", "1,203"]
  assert table["Books\\|3"][0] == "3.2500"
  assert table["lambada"] == ["acc", "0.5723", "0.0068"]  # the last of its rows
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


def test_side_by_side():
  other = copy.deepcopy(REPORT)
  other["data"]["windows"] = "windows of 2048 tokens, strided by 512"
  other["results"]["data"]["loss"] = 2.25
  del other["results"]["lambada"], other["tasks"]
  table = rows(report.compare([REPORT, other]))
  head = report.compare([REPORT, other]).splitlines()[0].strip("| ").split("|")
  assert [cell.strip() for cell in head] == ["mine int8 (1)", "mine int8 (2)"]
  assert table["windows"] == [REPORT["data"]["windows"], other["data"]["windows"]]
  assert table["data loss"] == ["2.5000", "2.2500"]
  assert table["lambada acc"] == ["0.5723", "-"]
  assert table["GPT-Neo 1.3B, published"][4] == "57.2300" == table["mine int8 (1)"][4]
  assert "mine int8 (2)" not in table  # it has nothing of that table


@pytest.mark.parametrize("text", ["{", json.dumps({"loss": 1}), json.dumps([])])
def test_what_is_no_report_is_named(text, tmp_path):
  path = tmp_path / "other.json"
  path.write_text(text)
  with pytest.raises(UserError, match=r"other\.json"):
    report.read(str(path))
