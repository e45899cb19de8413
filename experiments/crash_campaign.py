"""Runs killed at random moments and worse, all of which end as the one that was left alone.

  python experiments/crash_campaign.py [--runs 108] [--seed 0] [--kinds KIND ...] [--at_once 2]

Each is a small training run, a real process or two, that is disturbed in one of the ways of
`tests/helpers/crashes.py`, and then started again by the same command until it ends. Its weights,
its optimizer's state and every line of its metrics must be those of a run that nothing happened to,
bit for bit. Prints a table, and exits with 1 if one is not.
"""

import argparse
import collections
import concurrent.futures
import pathlib
import sys
import tempfile

import bench
import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # for tests.helpers
from tests.helpers import crashes


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--runs", type=int, default=108)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", nargs="+", default=list(crashes.KINDS), choices=crashes.KINDS)
  parser.add_argument("--at_once", type=int, default=2, help="runs at the same time")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    campaign = crashes.Campaign(pathlib.Path(folder))
    for hosts in {crashes.KINDS[kind][1] for kind in args.kinds}:
      campaign.alone(hosts)
    planned = crashes.schedule(args.kinds, args.runs, args.seed)
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
      waiting = [pool.submit(attempt, campaign, *one) for one in planned]
      bar = tqdm.tqdm(concurrent.futures.as_completed(waiting), total=len(waiting), unit="run")
      outcomes = [done.result() for done in bar]
  table = summary(outcomes)
  print(
    "\n".join(
      f"{kind:30} {row['runs']:4} runs {row['equal']:4} equal" for kind, row in table.items()
    )
  )
  failed = [one for one in outcomes if "failed" in one]
  for one in failed:
    print(f"\n{one['kind']}, seed {one['seed']}: {one['failed']}")
  bench.record(
    "crash_campaign", {"kinds": table, "runs": sorted(outcomes, key=lambda one: one["seed"])}
  )
  sys.exit(bool(failed))


def attempt(campaign, kind: str, seed: int) -> dict:
  try:
    return campaign.disturb(kind, seed)
  except crashes.NotRecovered as error:
    return {"kind": kind, "seed": seed, "failed": str(error)}


def summary(outcomes) -> dict[str, dict]:
  """Of each kind: how many runs there were, how many ended equal, and how often they were started
  again."""
  of_kind = collections.defaultdict(list)
  for one in outcomes:
    of_kind[one["kind"]].append(one)
  return {
    kind: {
      "runs": len(rows),
      "equal": sum("failed" not in row for row in rows),
      "started_again": sum(row.get("starts", 0) for row in rows),
    }
    for kind, rows in of_kind.items()
  }


if __name__ == "__main__":
  main()
