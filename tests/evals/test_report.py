"""Reports: written, and read again."""

import json
import math
import sys

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.evals import report, report_tables
from tests.helpers.reports import REPORT, changed


def test_written_and_read(tmp_path):
  path = tmp_path / "r.json"
  assert report.write(REPORT, str(path)) == []
  assert report.read(str(path)) == REPORT
  assert (tmp_path / "r.md").read_text() == report_tables.markdown(REPORT)
  assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.md", "r.png"]


def test_without_matplotlib_a_note(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  (note,) = report.write(REPORT, str(tmp_path / "r.json"))
  assert "r.png was not drawn: pip install matplotlib" in note
  assert not (tmp_path / "r.png").exists()


def test_numbers_that_are_not_finite_are_null(tmp_path):
  """JSON has no NaN: strict readers refuse it."""
  bad = changed(
    results__lambada__acc=math.nan, results__data__loss=math.inf,
    data__calibration=[{**REPORT["data"]["calibration"][0], "accuracy": -math.inf}],
  )  # fmt: skip
  report.write(bad, str(tmp_path / "r.json"))
  (tmp_path / "old.json").write_text(json.dumps(bad))  # with NaN
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
def test_files_that_are_no_report(text, tmp_path):
  path = tmp_path / "other.json"
  path.write_text(text)
  with pytest.raises(UserError, match=r"other\.json"):
    report.read(str(path))
