"""Measures a candidate for the speed record, beside the record that stands.

  python experiments/speedrun/measure.py experiments/speedrun/CANDIDATE.py [--seeds 3]

The target is TARGET bits per byte on the validation packages of the standard library (json,
logging, urllib) after training on the others, on two CPU cores; what counts is the time of the
training steps, without compiling, reading and evaluation. A candidate is a config file. It reaches
the target if the mean over seeds is below it with p < 0.01 (Student's t, one-sided), as in
modded-nanogpt; it is a record if it then takes less time than the one that stands, which is run in
turns with it, since machines differ. Records are kept in records.json, and the table in README.md
is made of them.
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


def is_record(runs: list[dict[str, float]], standing: list[dict[str, float]]) -> bool:
  """Whether the runs reach the target, and in less time than those beside them ('standing')."""
  reached = certainty([run["bits_per_byte"] for run in runs]) < 0.01
  seconds = lambda rows: statistics.mean(row["seconds"] for row in rows)
  return reached and (not standing or seconds(runs) < seconds(standing))


def table(records: list[dict[str, Any]]) -> str:
  """The records in their order; the time of each is a share of the first one's, of which machines
  say the same."""
  if not records:
    return "No record is measured yet.\n"
  lines = [
    "| | record | by | bits per byte, mean of the seeds | share of the first one's time | date |",
    "|---:|---|---|---:|---:|---|",
  ]
  share = 1.0
  for number, record in enumerate(records):
    values = [run["bits_per_byte"] for run in record["runs"]]
    share *= record["share"]
    lines.append(
      f"| {number} | [{record['config']}]({record['config']}) | {record['what']} |"
      f" {statistics.mean(values):.4f} (n={len(values)}, p={certainty(values):.1g}) |"
      f" {share:.2f} | {record['date']} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("candidate", type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--what", default="", help="what is new in it, for the table")
  args = parser.parse_args()
  records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else []
  standing = HERE / records[-1]["config"] if records else None
  runs, beside = [], []
  for seed in range(args.seeds):
    for config, rows in ((args.candidate, runs), (standing, beside)):
      if config is not None:
        rows.append(measure(config.resolve(), seed))
        print(f"{config.name}: {json.dumps(rows[-1])}", flush=True)
  values = [run["bits_per_byte"] for run in runs]
  seconds = statistics.mean(run["seconds"] for run in runs)
  share = seconds / statistics.mean(run["seconds"] for run in beside) if beside else 1.0
  print(f"{statistics.mean(values):.4f} bits per byte (target {TARGET}, p={certainty(values):.2g})")
  print(f"{seconds:.0f} s of training, {share:.2f} of the time of the record beside it")
  if not is_record(runs, beside):
    print("no record")
    return
  record = {
    "config": args.candidate.resolve().relative_to(HERE).as_posix(),
    "what": args.what,
    "date": datetime.date.today().isoformat(),
    "runs": runs,
    "beside": beside,
    "share": round(share, 4),
  }
  records.append(record)
  RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
  readme = HERE / "README.md"
  text = readme.read_text(encoding="utf-8")
  readme.write_text(report.with_table(text, table(records), "records"), encoding="utf-8")
  print(f"a record: written to {RECORDS.name} and README.md")


if __name__ == "__main__":
  main()
