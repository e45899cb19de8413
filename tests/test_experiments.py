"""Pictures of experiments, from what is recorded."""

import importlib
import json
import sys

import matplotlib
import pytest


@pytest.fixture
def experiments(repository, monkeypatch):
  monkeypatch.syspath_prepend(str(repository / "experiments"))
  return repository / "experiments"


@pytest.mark.parametrize("side", ["ours", "jax"])
def test_the_ceiling_of_a_picture_does_the_work_of_its_bars(experiments, side):
  """It is measured by a product of its own size."""
  recorded = json.loads((experiments / "bench_weight_gradient.json").read_text())["results"]
  (panel,) = importlib.import_module("bench_weight_gradient").panels(recorded)
  share = recorded["fraction_of_matmul_ceiling"][side]["median"]
  drawn = panel.series[""]["matmul ceiling"]["median"]
  assert drawn == pytest.approx(share * recorded["seconds"][side]["median"], rel=1e-3)


def test_every_recorded_benchmark_with_a_picture_can_be_drawn_again(experiments):
  pytest.importorskip("torch", reason="benchmarks measure it beside")
  bench = importlib.import_module("bench")
  for picture in experiments.glob("bench_*.png"):
    recorded = json.loads(picture.with_suffix(".json").read_text())["results"]
    panels = bench.module_of(picture).panels(recorded)
    assert panels and all(panel.y and panel.title for panel in panels)
    assert all(row for panel in panels for row in panel.series.values())


def test_runs_over_each_other(experiments, tmp_path, monkeypatch):
  """Also where there are subsets; the same name of two folders stays two."""
  lines = (experiments / "001_tiny" / "metrics.jsonl").read_text().splitlines()
  runs = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
  for run in runs:
    run.mkdir(parents=True)
    last = json.loads(lines[-1]) | {"eval/bits_per_byte/Books": 1.0, "eval/bits_per_byte/Code": 2.0}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
  monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
  image = tmp_path / "both.svg"
  monkeypatch.setattr(sys, "argv", ["plot_run.py", *map(str, runs), str(image)])
  importlib.import_module("plot_run").main()
  drawn = image.read_text()
  assert all(f"{run}, training" in drawn for run in runs) and "Books" in drawn
