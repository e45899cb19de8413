"""Every recipe of configs/finetune on real data: from trained weights and from random ones.

  python experiments/finetune_tasks.py --data TASKS --init_from MODEL --workdir runs/tasks
  python experiments/finetune_tasks.py … --only spam,ner --seeds 1

TASKS is a folder with the files that ROWS names, MODEL anything that --config.init_from takes. Each
run is the recipe as it stands but for the learning rate, since the recipes' are for 125 million
parameters. Beside both stands what needs no model (task_baselines.py). Figures are those of the
test records, or of the validation ones where a row has no others; mean and spread (lowest to
highest) over the seeds. Runs that finetune_tasks.json has with the same learning rate are not made
again; those of another one are made anew. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import task_baselines

from gptneo_jax import train
from gptneo_jax.training import config_file

_RECORDED = pathlib.Path(__file__).with_suffix(".json")


class Row(NamedTuple):
  """A recipe on some data. metrics: the first is the one that counts."""

  config: str
  data: dict[str, str]  # settings of config.data that are paths in the folder
  metrics: tuple[str, ...]
  settings: dict[str, Any] = {}  # noqa: RUF012 (never changed)


ROWS = {
  "spam": Row("spam", {"path": "sms_spam.tsv"}, ("accuracy", "f1")),
  "intents": Row(
    "intents",
    {
      "path": "classification/banking77_en/train.csv",
      "test_path": "classification/banking77_en/test.csv",
    },
    ("accuracy", "f1"),
  ),
  "multilabel": Row(
    "multilabel",
    {
      "path": "classification/nlupp_banking_en/train.json",
      "test_path": "classification/nlupp_banking_en/test.json",
    },
    ("f1", "f1_macro", "exact_match"),
  ),
  "entailment": Row(
    "entailment",
    {
      "path": "pairs/inferbr_nli_pt/train.csv",
      "validation_path": "pairs/inferbr_nli_pt/val.csv",
      "test_path": "pairs/inferbr_nli_pt/test.csv",
    },
    ("accuracy", "f1"),
  ),
  "similarity": Row(
    "similarity",
    {
      "path": "pairs/sts_captions_en/stsb-en-train.csv",
      "validation_path": "pairs/sts_captions_en/stsb-en-dev.csv",
      "test_path": "pairs/sts_captions_en/stsb-en-test.csv",
    },
    ("spearman", "pearson"),
  ),
  "multiple_choice": Row(
    "multiple_choice",
    {"path": "choice/arc_easy_en/ARC-Easy-validation.jsonl"},
    ("accuracy",),
    {"data.test_fraction": 0.2},
  ),
  "ner": Row(
    "ner",
    {
      "path": "wnut17/train.conll",
      "validation_path": "wnut17/dev.conll",
      "test_path": "wnut17/test.conll",
    },
    ("f1", "precision", "recall"),
  ),
  "ner in Portuguese": Row(
    "ner",
    {
      "path": "ner_pt/pt_bosque-ud-dev.conll",
      "test_path": "ner_pt/pt_bosque-ud-test.conll",
    },
    ("f1", "precision", "recall"),
  ),
  "squad": Row(
    "squad", {"path": "qa/xquad_en/xquad.en.json"}, ("f1", "exact_match"),
    {"data.test_fraction": 0.2},
  ),
  "squad v2.0": Row(
    "squad", {"path": "qa/squad2_a/dev-v2.0-a.json"}, ("f1", "exact_match"),
    {"data.test_fraction": 0.2},
  ),
  "clm": Row("clm", {"path": "text_pt/bosque_news_pt.txt"}, ("loss", "bits_per_byte")),
  "qa_pairs": Row("qa_pairs", {"path": "chat/trivia_qa_en/football.json"}, ("exact_match",)),
  "instruct": Row(
    "instruct", {"path": "instruct/instruction-data.json"}, ("loss", "token_accuracy")
  ),
  "chat": Row("chat", {"path": "chat/pira_qa_pt/pira_qa_pt.json"}, ("loss", "token_accuracy")),
}  # fmt: skip
METHODS = ("weights", "random")


def config_of(row: Row, args: argparse.Namespace, seed: int, method: str):
  """The recipe on the row's data."""
  config = config_file.load(f"configs/finetune/{row.config}.py").unlock()
  config.update_from_flattened_dict(row.settings)
  for name, path in row.data.items():
    config.data[name] = str(pathlib.Path(args.data, path))
  config.init_from, config.seed, config.random_weights = args.init_from, seed, method == "random"
  config.optimizer.learning_rate = rate(args, method)
  return config.lock()


def rate(args: argparse.Namespace, method: str) -> float:
  return args.random_learning_rate if method == "random" else args.learning_rate


def run(row: Row, args: argparse.Namespace, name: str, seed: int, method: str) -> dict[str, Any]:
  """What summary.json of a run says."""
  # A run with another learning rate is another run.
  run_name = f"{method}_{rate(args, method):g}_{seed}"
  workdir = pathlib.Path(args.workdir, name.replace(" ", "_"), run_name)
  file = workdir / "summary.json"
  if not file.exists():
    train.run(config_of(row, args, seed, method), str(workdir))
  return json.loads(file.read_text())


def figure(summary: dict[str, Any], metric: str) -> float | None:
  """Of the test records, else of the validation ones, else of those of training."""
  names = (f"{split}_{metric}" for split in ("test", "eval", "train"))
  return next((summary[name] for name in names if summary.get(name) is not None), None)


# --- what is recorded, and the table --------------------------------------------------------------


def recorded() -> dict[str, Any]:
  """Of each row `baselines` (of each the metrics), and of each method its `learning_rate` and
  `runs` (the summary for each seed)."""
  return json.loads(_RECORDED.read_text()) if _RECORDED.exists() else {}


def fill(name: str, args: argparse.Namespace) -> None:
  """Makes the runs of a row that are not recorded with the learning rate that is asked for."""
  row = ROWS[name]
  found = recorded().get(name, {})
  found["baselines"] = task_baselines.measure(config_of(row, args, 0, "weights"))
  for seed in range(args.seeds):
    for method in METHODS:
      of_method = found.get(method)
      if not of_method or of_method["learning_rate"] != rate(args, method):
        of_method = found[method] = {"learning_rate": rate(args, method), "runs": {}}
      if str(seed) not in of_method["runs"]:
        of_method["runs"][str(seed)] = run(row, args, name, seed, method)
        # Read again for each run: another process may work on other rows.
        _RECORDED.write_text(json.dumps(recorded() | {name: found}, indent=1) + "\n")


def table(rows: dict[str, Any]) -> str:
  """The rows that are recorded, in the order of ROWS."""
  lines = [
    "| recipe, data | metric | majority | words alone | random weights | trained ones | seeds |",
    "|---|---|---:|---:|---:|---:|---:|",
  ]
  for name, row in ((name, rows[name]) for name in ROWS if name in rows):
    for metric in ROWS[name].metrics:
      simple = [row["baselines"].get(key, {}).get(metric) for key in task_baselines.NAMES]
      runs = [_figures(row, method, metric) for method in METHODS[::-1]]
      cells = [name, metric, *map(_cell, simple + runs), str(len(runs[-1]))]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _figures(row: dict[str, Any], method: str, metric: str) -> list[float]:
  summaries = row.get(method, {"runs": {}})["runs"].values()
  return [x for summary in summaries if (x := figure(summary, metric)) is not None]


def _cell(values: float | list[float] | None) -> str:
  if values is None or values == []:
    return "-"
  if not isinstance(values, list):
    return f"{values:.4f}"
  return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True, help="folder of the files")
  parser.add_argument("--init_from", required=True, help="trained weights")
  parser.add_argument("--workdir", default="runs/tasks")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--only", default="", help="names of rows, with commas")
  parser.add_argument("--learning_rate", type=float, default=5e-4, help="of trained weights")
  parser.add_argument("--random_learning_rate", type=float, default=1e-3)
  args = parser.parse_args()
  for name in args.only.split(",") if args.only else ROWS:
    fill(name, args)
    print(table({name: recorded()[name]}), flush=True)
  print(table(recorded()))


if __name__ == "__main__":
  main()
