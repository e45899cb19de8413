"""Measures the arms of an experiment: one training run for each arm and seed.

  python experiments/ablations.py experiments/002_optimizers [--seeds 3] [--only muon,adamw]

The folder's arms.json says what to run: a config, settings that all arms share, and the settings of
each arm. Runs are kept in runs.jsonl beside this file; those that are there are not made again, so
experiments share their baseline, and a command that was interrupted goes on where it was. What they
say: `python -m experiments.report`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pathlib
import platform
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from gptneo_jax import train
from gptneo_jax.training import config_file

HERE = pathlib.Path(__file__).parent
RUNS = HERE / "runs.jsonl"


def recorded() -> list[dict[str, Any]]:
  """All runs that were made."""
  if not RUNS.exists():
    return []
  return [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]


def settings_of(experiment: dict[str, Any], arm: str) -> dict[str, Any]:
  """What identifies the runs of an arm, but for their seeds."""
  return {
    "config": experiment["config"],
    **experiment.get("settings", {}),
    **experiment["arms"][arm],
  }


def runs_of(runs: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
  """The runs with these settings, by seed."""
  return sorted((run for run in runs if run["settings"] == settings), key=lambda run: run["seed"])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--only", default="", help="arms, with commas; else all")
  args = parser.parse_args()
  experiment = json.loads((args.folder / "arms.json").read_text(encoding="utf-8"))
  arms = args.only.split(",") if args.only else list(experiment["arms"])
  for seed in range(args.seeds):
    for arm in arms:
      settings = settings_of(experiment, arm)
      if any(run["seed"] == seed for run in runs_of(recorded(), settings)):
        continue
      line = {"settings": settings, "seed": seed, **measure(settings, seed)}
      with RUNS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
      print(f"{arm}, seed {seed}: {line['bits_per_byte']:.4f} bits per byte", flush=True)


def config_of(settings: dict[str, Any], seed: int) -> ConfigDict:
  settings = dict(settings)
  config = config_file.load(str(HERE.parent / settings.pop("config"))).unlock()
  config.update_from_flattened_dict({**settings, "seed": seed})
  return config.lock()


def measure(settings: dict[str, Any], seed: int) -> dict[str, Any]:
  """One run: its validation curve, its seconds of training, and what made it."""
  config = config_of(settings, seed)
  with tempfile.TemporaryDirectory() as folder:
    with _quiet(pathlib.Path(folder) / "output.txt"):
      status = train.run(config, f"{folder}/run")
    if status:  # stopped by a signal
      sys.exit(status)
    jax.clear_caches()
    text = pathlib.Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8")
  lines = [json.loads(line) for line in text.splitlines()]
  evaluated = [line for line in lines if "eval/bits_per_byte" in line]
  logged = [line for line in lines if "train/loss" in line]
  return {
    "bits_per_byte": evaluated[-1]["eval/bits_per_byte"],
    "loss": evaluated[-1]["eval/loss"],
    "curve": [[line["step"], round(line["eval/bits_per_byte"], 5)] for line in evaluated],
    "train_loss": [[line["step"], round(line["train/loss"], 4)] for line in logged],
    "seconds": round(sum(_seconds(logged)), 1),
    "machine": platform.processor() or platform.machine(),
    "jax": jax.__version__,
  }


def _seconds(lines: list[dict[str, float]]) -> Iterator[float]:
  """Seconds of training up to each line since the one before, without evaluation and saving; the
  first step, which compiles, has none."""
  for before, line in itertools.pairwise([{"step": 0}, *lines]):
    yield (line["step"] - before["step"]) * line.get("perf/step_seconds", 0.0)


@contextlib.contextmanager
def _quiet(path: pathlib.Path) -> Iterator[None]:
  """What a run says goes into a file, which is printed if it fails."""
  with path.open("w", encoding="utf-8") as file:
    try:
      with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
    except BaseException:
      file.flush()
      sys.stderr.write(path.read_text(encoding="utf-8"))
      raise


if __name__ == "__main__":
  main()
