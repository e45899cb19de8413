"""Measures a candidate for the speed record, beside the record that stands.

  python experiments/speedrun/measure.py "experiments/speedrun/CANDIDATE.py=what is new in it"

The target is TARGET bits per byte on the validation packages of the standard library (json,
logging, urllib) after training on the others, on two CPU cores; what counts is the time of the
training steps, without compiling, reading and evaluation. A candidate is a config file. It reaches
the target if the mean over seeds is below it with p < 0.01 (Student's t, one-sided), as in
modded-nanogpt; it is a record if it then takes less time than the one that stands, which is run in
turns with it, since machines differ. Several candidates take turns too, and are judged in their
order. Records are kept in records.json, and the table in README.md is made of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import statistics
import sys
from typing import Any

import scipy.stats

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
from experiments import ablations, report  # noqa: E402

TARGET = 2.2
RECORDS = HERE / "records.json"


def measure(candidate: pathlib.Path, seed: int) -> dict[str, float]:
  """Bits per byte at the end of a run, and the seconds of its steps."""
  run = ablations.measure({"config": str(candidate)}, seed)
  return {"seed": seed, "bits_per_byte": run["bits_per_byte"], "seconds": run["seconds"]}


def certainty(values: list[float], target: float = TARGET) -> float:
  """The chance of values so low if their true mean were the target; 1 of a single value."""
  if len(values) < 2:
    return 1.0
  if not statistics.pstdev(values):
    return 0.0 if values[0] < target else 1.0
  return float(scipy.stats.ttest_1samp(values, target, alternative="less").pvalue)


def share(runs: list[dict[str, float]], standing: list[dict[str, float]]) -> float:
  """Mean time of the runs over that of those beside them ('standing'); 1 beside none."""
  seconds = lambda rows: statistics.mean(row["seconds"] for row in rows)
  return seconds(runs) / seconds(standing) if standing else 1.0


def is_record(runs: list[dict[str, float]], standing: list[dict[str, float]]) -> bool:
  """Whether the runs reach the target, and in less time than those beside them."""
  reached = certainty([run["bits_per_byte"] for run in runs]) < 0.01
  return reached and (not standing or share(runs, standing) < 1)


def judge(runs: list[dict[str, float]], standing: list[dict[str, float]]) -> str:
  """A line: how far, how surely, how fast, and whether that is a record."""
  values = [run["bits_per_byte"] for run in runs]
  seconds = statistics.mean(run["seconds"] for run in runs)
  return (
    f"{statistics.mean(values):.4f} bits per byte (target {TARGET}, p={certainty(values):.2g}),"
    f" {seconds:.0f} s of training, {share(runs, standing):.2f} of those of the record beside it: "
    + ("a record" if is_record(runs, standing) else "no record")
  )


def table(records: list[dict[str, Any]]) -> str:
  """The records in their order; the time of each is a share of the first one's, of which machines
  say the same."""
  if not records:
    return "No record is measured yet.\n"
  lines = [
    "| | record | by | bits per byte, mean of the seeds | share of the first one's time | date |",
    "|---:|---|---|---:|---:|---|",
  ]
  of_first = 1.0
  for number, record in enumerate(records):
    values = [run["bits_per_byte"] for run in record["runs"]]
    of_first *= record["share"]
    lines.append(
      f"| {number} | [{record['config']}]({record['config']}) | {record['what']} |"
      f" {statistics.mean(values):.4f} (n={len(values)}, p={certainty(values):.1g}) |"
      f" {of_first:.2f} | {record['date']} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("candidates", nargs="+", metavar="CANDIDATE.py=WHAT",
                      help="a config file, and what is new in it, for the table")  # fmt: skip
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  candidates = {}
  for argument in args.candidates:
    path, _, what = argument.partition("=")
    candidates[pathlib.Path(path).resolve().relative_to(HERE).as_posix()] = what
  records = json.loads(RECORDS.read_text(encoding="utf-8"))
  runs: dict[str, list[dict[str, float]]] = {config: [] for config in candidates}
  if records:
    runs = {records[-1]["config"]: [], **runs}
  for seed in range(args.seeds):
    for config, rows in runs.items():
      rows.append(measure(HERE / config, seed))
      print(f"{config}: {json.dumps(rows[-1])}", flush=True)
  for config, what in candidates.items():
    beside = runs[records[-1]["config"]] if records else []
    print(f"{config}: {judge(runs[config], beside)}")
    if is_record(runs[config], beside):
      records.append({
        "config": config, "what": what, "date": datetime.date.today().isoformat(),
        "runs": runs[config], "beside": beside, "share": round(share(runs[config], beside), 4),
      })  # fmt: skip
  RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
  readme = HERE / "README.md"
  text = readme.read_text(encoding="utf-8")
  readme.write_text(report.with_table(text, table(records), "records"), encoding="utf-8")


if __name__ == "__main__":
  main()
