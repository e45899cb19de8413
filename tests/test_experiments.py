"""Pictures of experiments, from what is recorded."""

import collections
import importlib
import json
import math
import sys

import matplotlib
import numpy as np
import pytest

from gptneo_jax.training import parse_config
from tests.helpers.small_runs import texts, write_jsonl


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


def test_every_recorded_benchmark_with_a_picture_can_be_drawn_again(experiments, request):
  torch = pytest.importorskip("torch", reason="benchmarks measure it beside")
  request.addfinalizer(lambda: torch.set_flush_denormal(False))  # peer.py sets it for its process
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


# --- the archive ----------------------------------------------------------------------------------


@pytest.fixture
def report(repository, monkeypatch):
  monkeypatch.syspath_prepend(str(repository))
  return importlib.import_module("experiments.report")


def test_the_archive_says_what_the_runs_say(report):
  """Pages and table are those that the recorded runs make, and no run belongs to nothing."""
  runs, rows, used = report.ablations.recorded(), [], []
  for folder in report.experiments():
    experiment = report.read(folder)
    arms = report.arms_of(experiment, runs)
    assert [arm.name for arm in arms] == list(experiment["arms"]), (
      f"{folder.name}: arms without runs"
    )
    assert (folder / "README.md").read_text() == report.page(folder, experiment, arms)
    assert (folder / "plot.png").exists()
    rows.append((folder, experiment, arms))
    used += [run for arm in arms for run in arm.runs]
  assert all(run in used for run in runs)
  readme = (report.HERE / "README.md").read_text()
  assert report.with_table(readme, report.table(rows)) == readme
  held = [experiment["prediction_held"] for _, experiment, _ in rows]
  assert "failed" in held and {*held} <= {"held", "in part", "failed"}


def test_runs_are_of_settings_that_a_config_takes(report):
  for folder in report.experiments():
    experiment = report.read(folder)
    for arm in experiment["arms"]:
      config = report.ablations.config_of(report.ablations.settings_of(experiment, arm), seed=0)
      assert parse_config.read(config).task


@pytest.mark.parametrize(
  ("difference", "n", "sigma", "seems"),
  [
    (-0.010, 4, 0.006, "better"),
    (-0.010, 4, 0.007, "not told apart"),
    (-0.010, 9, 0.009, "better"),
    (0.010, 4, 0.006, "worse"),
  ],
)
def test_a_difference_counts_from_three_standard_errors_on(report, difference, n, sigma, seems):
  assert report.judge(difference, n, sigma) == seems


def test_the_deviation_is_pooled_over_the_arms(report):
  assert report.pooled_deviation([[1.0, 3.0], [5.0, 5.0, 5.0]]) == pytest.approx((2 / 3) ** 0.5)
  assert report.pooled_deviation([[1.0], [2.0]]) == math.inf


def test_a_run_is_measured_once(report, tmp_path, monkeypatch):
  """An arm's run on a folder of text: its curve ends where its figure stands; then nothing."""
  path = write_jsonl(tmp_path / "train.jsonl", texts(60))
  settings = {
    "model.hidden_size": 16, "model.num_heads": 2, "model.vocab_size": 299, "steps": 4,
    "model.max_position_embeddings": 16, "seq_len": 16, "schedule.warmup_steps": 1,
    "schedule.decay_steps": 4, "eval_every": 2, "checkpoint_every": 0, "data.source": "jsonl",
    "data.path": path, "data.validation_fraction": 0.05, "data.test_fraction": 0.0,
    "eval.sample_tokens": 0, "eval.baselines": False, "log_every": 1,
  }  # fmt: skip
  experiment = {"config": "configs/tiny.py", "settings": settings, "baseline": "one",
                "arms": {"one": {}, "two": {"optimizer.learning_rate": 1e-2}}}  # fmt: skip
  (tmp_path / "arms.json").write_text(json.dumps(experiment))
  monkeypatch.setattr(report.ablations, "RUNS", tmp_path / "runs.jsonl")
  monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path), "--seeds", "1"])
  report.ablations.main()
  written = (tmp_path / "runs.jsonl").read_text()
  one, two = report.arms_of(experiment, report.ablations.recorded())
  assert one.runs[0]["curve"][-1] == [4, pytest.approx(one.mean, abs=1e-5)]
  assert len(one.runs[0]["train_loss"]) == 4 and one.mean != two.mean
  assert two.difference == pytest.approx(two.mean - one.mean) and two.seems == ""
  report.ablations.main()
  assert (tmp_path / "runs.jsonl").read_text() == written


# --- baselines ------------------------------------------------------------------------------------


def _reference_kneser_ney(text, order, vocabulary):
  """P(id | context) by the textbook's formula with dictionaries; a context is a tuple of ids."""
  grams = {
    n: [tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for n in range(1, order + 1)
  }
  counts = {order: collections.Counter(grams[order])}
  for n in range(1, order):
    counts[n] = collections.Counter(gram[1:] for gram in set(grams[n + 1]))

  def probability(token, context):
    n = len(context) + 1
    lower = probability(token, context[1:]) if context else 1 / vocabulary
    total = sum(count for gram, count in counts[n].items() if gram[:-1] == context)
    if not total:
      return lower
    ones, twos = (list(counts[n].values()).count(number) for number in (1, 2))
    discount = ones / max(1, ones + 2 * twos)
    types = sum(gram[:-1] == context for gram in counts[n])
    return (max(counts[n][(*context, token)] - discount, 0) + discount * types * lower) / total

  return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_n_gram_is_kneser_and_ney_s(experiments, order):
  ngrams = importlib.import_module("ngram_baseline")
  rng = np.random.default_rng(order)
  text = rng.integers(0, 4, 60) * rng.integers(0, 2, 60)
  model, reference = (
    ngrams.KneserNey(text, 6, order),
    _reference_kneser_ney(text.tolist(), order, 6),
  )
  new = rng.integers(0, 6, 40)  # with ids and n-grams that were never seen
  found = model.probabilities(new)
  for place in range(1, len(new)):
    context = tuple(new[max(0, place - order + 1) : place].tolist())
    assert found[place - 1] == pytest.approx(reference(int(new[place]), context), rel=1e-9)


def test_probabilities_of_the_n_gram_add_to_one(experiments):
  ngrams = importlib.import_module("ngram_baseline")
  text = np.random.default_rng(0).integers(0, 5, 200)
  model = ngrams.KneserNey(text, 7)
  for context in ([0, 1, 2, 3], [6, 6, 6, 6], [4], [1, 6, 2]):
    every = [model.probabilities(np.array([*context, token]))[-1] for token in range(7)]
    assert sum(every) == pytest.approx(1)


# --- the speed record -----------------------------------------------------------------------------


@pytest.fixture
def speedrun(repository, monkeypatch):
  monkeypatch.syspath_prepend(str(repository / "experiments" / "speedrun"))
  return importlib.import_module("measure")


def _runs(values, seconds):
  return [{"bits_per_byte": value, "seconds": seconds} for value in values]


def test_a_record_reaches_the_target_for_sure_and_takes_less_time(speedrun):
  below = [speedrun.TARGET - 0.010, speedrun.TARGET - 0.012, speedrun.TARGET - 0.008]
  near = [speedrun.TARGET - 0.010, speedrun.TARGET + 0.008, speedrun.TARGET - 0.004]
  # Student's t of (-0.010, -0.012, -0.008): mean over its standard error of 0.002 / sqrt(3), with
  # two degrees of freedom: P(t < -8.66) = 0.0065 by the table of the distribution.
  assert speedrun.certainty(below) == pytest.approx(0.0065, abs=1e-4)
  assert speedrun.certainty(below[:1]) == 1.0
  standing = _runs(below, 100.0)
  assert speedrun.is_record(_runs(below, 99.0), standing)
  assert not speedrun.is_record(_runs(below, 101.0), standing)
  assert not speedrun.is_record(_runs(near, 50.0), standing)
  assert speedrun.is_record(_runs(below, 1e9), [])  # the first one


def test_candidates_take_turns_and_each_is_beside_the_record_before(
  speedrun, tmp_path, monkeypatch
):
  files = [tmp_path / name for name in ("a.py", "slow.py", "b.py")]
  (tmp_path / "README.md").write_text("<!-- records: begin -->\n<!-- records: end -->\n")
  (tmp_path / "records.json").write_text("[]")
  order, seconds = [], {"a.py": 100.0, "slow.py": 150.0, "b.py": 80.0}

  def measured(candidate, seed):
    order.append((candidate.name, seed))
    return _runs([speedrun.TARGET - 0.05 - 0.001 * seed], seconds[candidate.name])[0]

  monkeypatch.setattr(speedrun, "measure", measured)
  monkeypatch.setattr(speedrun, "HERE", tmp_path)
  monkeypatch.setattr(speedrun, "RECORDS", tmp_path / "records.json")
  monkeypatch.setattr(sys, "argv", ["measure.py", *(f"{file}=new" for file in files)])
  speedrun.main()
  assert order == [(file.name, seed) for seed in range(3) for file in files]
  first, second = json.loads((tmp_path / "records.json").read_text())
  assert (first["config"], first["beside"], first["share"]) == ("a.py", [], 1.0)
  assert (second["config"], second["beside"], second["share"]) == ("b.py", first["runs"], 0.8)
  assert "| 0.80 |" in (tmp_path / "README.md").read_text()


def test_the_table_of_records_is_that_of_the_file(speedrun):
  records = json.loads(speedrun.RECORDS.read_text())
  page = (speedrun.HERE / "README.md").read_text()
  assert speedrun.report.with_table(page, speedrun.table(records), "records") == page
  shares = [record["share"] for record in records]
  assert all(share == 1.0 for share in shares[:1]) and all(0 < share < 1 for share in shares[1:])
  for record in records:
    assert speedrun.is_record(record["runs"], record["beside"])
    assert (speedrun.HERE / record["config"]).exists()
