"""Every recipe of configs/finetune on real data: from trained weights and from random ones.

  python experiments/finetune_tasks.py --data TASKS --init_from MODEL --workdir runs/tasks
  python experiments/finetune_tasks.py … --only spam,ner --seeds 1

TASKS is a folder with the files that ROWS names, MODEL anything that --config.init_from takes. Each
run is the recipe as it stands, with the learning rate of --learning_rate where that is given, since
the recipes' are for 125 million parameters. Beside both stand the majority (of labels, of tags; of
a value its mean) and, where a text or a pair has labels, logistic regression on bags of words
(scikit-learn, tf-idf of words and pairs of words). Figures are those of the test records, or of the
validation ones where a row has no others; mean and spread (lowest to highest) over the seeds. Runs
that finetune_tasks.json has with the same learning rate are not made again; a row with another one
is made anew. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax import train
from gptneo_jax.errors import user_errors
from gptneo_jax.examples import find, label_predictions, labels, splits
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.training import config_file, parse_config

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
  "BoolQ": Row(
    "entailment",
    {"path": "pairs/boolq_en/dev_800.jsonl"},
    ("accuracy", "f1"),
    {
      "data.columns": "first=passage,second=question,label=answer", "data.test_fraction": 0.2,
      "seq_len": 1024, "data.on_too_long": "truncate_left",
    },
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
BASELINES = ("majority", "logistic regression")


def config_of(row: Row, args: argparse.Namespace, seed: int, method: str):
  """The recipe on the row's data."""
  config = config_file.load(f"configs/finetune/{row.config}.py").unlock()
  config.update_from_flattened_dict(row.settings)
  for name, path in row.data.items():
    config.data[name] = str(pathlib.Path(args.data, path))
  config.init_from, config.seed, config.random_weights = args.init_from, seed, method == "random"
  if args.learning_rate:
    config.optimizer.learning_rate = args.learning_rate
  return config.lock()


def run(row: Row, args: argparse.Namespace, name: str, seed: int, method: str) -> dict[str, Any]:
  """What summary.json of a run says."""
  # A run with another learning rate is another run.
  run_name = f"{method}_{args.learning_rate:g}_{seed}"
  workdir = pathlib.Path(args.workdir, name.replace(" ", "_"), run_name)
  file = workdir / "summary.json"
  if not file.exists():
    train.run(config_of(row, args, seed, method), str(workdir))
  return json.loads(file.read_text())


def figure(summary: dict[str, Any], metric: str) -> float | None:
  """Of the test records, else of the validation ones, else of those of training."""
  names = (f"{split}_{metric}" for split in ("test", "eval", "train"))
  return next((summary[name] for name in names if summary.get(name) is not None), None)


# --- what a model has to beat ---------------------------------------------------------------------


def baselines(row: Row, args: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Metrics of the majority, and of logistic regression where a record is a text or a pair."""
  config = config_of(row, args, 0, "weights")
  if config.task not in ("sequence_classification", "sentence_pairs"):
    return {}
  kind = find(config.task)
  with user_errors():
    data_config = parse_config.read(config).data
  found = splits.load_splits(data_config, kind.ROLES, kind.key)
  unsettled = TaskSpec(config.task, config.seq_len, problem=config.examples.problem)
  spec = kind.settle(found.train, unsettled)
  tested = found.test or found.validation
  text = lambda r: r.fields.get("text") or f"{r.fields['first']} {r.fields['second']}"
  targets = np.array([labels.target(record, spec) for record in found.train])
  outputs = {
    "majority": lambda records: np.tile(targets.mean(0), (len(records), 1)),
    "logistic regression": _regression(found.train, targets, spec, text),
  }
  return {
    name: label_predictions.metrics([_said(row, spec) for row in output(tested)], tested, spec)
    for name, output in outputs.items()
  }


def _said(shares, spec):
  """Shares as the outputs of a head would give them."""
  if spec.problem == labels.REGRESSION:
    return label_predictions.of_outputs(np.asarray(shares), spec)
  clipped = np.clip(shares, 1e-9, 1 - 1e-9)
  logits = np.log(clipped) - (np.log1p(-clipped) if spec.problem == labels.MULTI else 0)
  return label_predictions.of_outputs(logits, spec)


def _regression(
  train_records: list[Record], targets: np.ndarray, spec, text: Callable[[Record], str]
) -> Callable[[list[Record]], np.ndarray]:
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression, Ridge
  from sklearn.multiclass import OneVsRestClassifier

  words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
  inputs = words.fit_transform(map(text, train_records))
  if spec.problem == labels.REGRESSION:
    fitted = Ridge().fit(inputs, targets[:, 0])
    return lambda records: fitted.predict(words.transform(map(text, records)))[:, None]
  model = LogisticRegression(C=10.0, max_iter=2000)
  if spec.problem == labels.MULTI:
    fitted = OneVsRestClassifier(model).fit(inputs, targets.astype(int))
  else:
    fitted = model.fit(inputs, targets.argmax(-1))
  return lambda records: fitted.predict_proba(words.transform(map(text, records)))


# --- what is recorded, and the table --------------------------------------------------------------


def recorded() -> dict[str, Any]:
  """Of each row its learning rate, `simple` (of a baseline each metric), and `runs` (of a method
  the summary for each seed)."""
  return json.loads(_RECORDED.read_text()) if _RECORDED.exists() else {}


def fill(name: str, args: argparse.Namespace) -> None:
  """Makes the runs of a row that are not recorded with the learning rate that is asked for."""
  row = ROWS[name]
  found = recorded().get(name)
  if not found or found["learning_rate"] != args.learning_rate:
    found = {"learning_rate": args.learning_rate, "simple": baselines(row, args), "runs": {}}
  for seed in range(args.seeds):
    for method in METHODS:
      of_method = found["runs"].setdefault(method, {})
      if str(seed) not in of_method:
        of_method[str(seed)] = run(row, args, name, seed, method)
        # Read again for each run: another process may work on other rows.
        _RECORDED.write_text(json.dumps(recorded() | {name: found}, indent=1) + "\n")


def table(rows: dict[str, Any]) -> str:
  """The rows that are recorded, in the order of ROWS."""
  lines = [
    "| recipe, data | metric | majority | bag of words | random weights | trained ones | seeds |",
    "|---|---|---:|---:|---:|---:|---:|",
  ]
  for name, row in ((name, rows[name]) for name in ROWS if name in rows):
    for metric in ROWS[name].metrics:
      simple = [row["simple"].get(key, {}).get(metric) for key in BASELINES]
      runs = [
        [
          x
          for one in row["runs"].get(method, {}).values()
          if (x := figure(one, metric)) is not None
        ]
        for method in METHODS[::-1]
      ]
      cells = [name, metric, *map(_cell, simple + runs), str(len(runs[-1]))]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _cell(values: float | list[float] | None) -> str:
  if values is None or values == [] or np.isnan(values).any():
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
  parser.add_argument("--learning_rate", type=float, default=0.0, help="0: the recipes' own")
  args = parser.parse_args()
  for name in args.only.split(",") if args.only else ROWS:
    fill(name, args)
    print(table({name: recorded()[name]}), flush=True)
  print(table(recorded()))


if __name__ == "__main__":
  main()
