"""The flags of `python -m gptneo_jax.evaluate`, and checks of them before anything is loaded."""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
from collections.abc import Sequence

from gptneo_jax import cli
from gptneo_jax.config import FLOAT_TYPES
from gptneo_jax.errors import UserError

_SPLITS = ("train", "validation", "test")
_ONLY_WITH = {
  "data": ("split", "source", "text_key", "seq_len", "stride"),
  "tasks": ("include_path", "task_data", "num_fewshot", "log_samples", "cache"),
  "answers": ("judge",),
  "labelled": ("columns",),
}


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
  """The flags, with `output` set. Raises UserError for flags that are wrong for any model."""
  args = _parser(description).parse_args(argv)
  if args.compare:
    args.output = _output(args.output, "comparison")
    return args
  if not args.checkpoint:
    raise UserError("no --checkpoint; give a run's --workdir, a Hugging Face folder or a hub id")
  if not (args.data or args.tasks or args.answers or args.labelled):
    raise UserError(
      "nothing to evaluate; give --data GLOB, --tasks NAMES, --answers FILE.jsonl or"
      " --labelled FILE"
    )
  args.output = _output(args.output, "evaluation")
  for flag in ("batch_size", "seq_len", "limit", "max_new_tokens"):
    value = getattr(args, flag)
    if value is not None and value < 1:
      raise UserError(f"--{flag} is {value}; it is at least 1")
  for needed, flags in _ONLY_WITH.items():
    for flag in flags:
      given = getattr(args, flag) is not None and getattr(args, flag) is not False
      if given and not getattr(args, needed):
        raise UserError(f"--{flag} is for --{needed}")
  return args


def _output(output: str | None, default: str) -> str:
  """The report's file; without --output the first free one of DEFAULT.json, DEFAULT_2.json, ..."""
  if output is None:
    names = (f"{default}_{n}.json" if n > 1 else f"{default}.json" for n in itertools.count(1))
    output = next(name for name in names if not os.path.exists(name))
  if not output.endswith(".json"):
    raise UserError(f"--output is {output!r}; give the report's file, NAME.json")
  folder = pathlib.Path(output).parent
  if not folder.is_dir():
    raise UserError(f"--output {output}: there is no folder {folder}; make it first")
  if not os.access(folder, os.W_OK):
    raise UserError(f"--output {output}: the folder {folder} cannot be written to")
  return output


def _parser(description: str | None) -> argparse.ArgumentParser:
  parser = cli.Parser(prog="python -m gptneo_jax.evaluate", description=description)
  add = parser.add_argument
  add(
    "--checkpoint", metavar="DIR",
    help="checkpoint folder, such as a run's --workdir; a Hugging Face folder or hub id works too",
  )  # fmt: skip
  add("--step", metavar="N|best", help="which checkpoint, 'best' by eval/loss; default the newest")
  add("--adapter", metavar="DIR", help="LoRA adapter in PEFT's form, merged into the weights")
  add("--tokenizer", metavar="DIR_OR_ID", help="in place of the one in the checkpoint's folder")
  add(
    "--output", metavar="FILE.json",
    help="the report; a table (FILE.md) and a picture (FILE.png) come beside it; default"
    " evaluation.json (comparison.json), with a number where that is there already",
  )  # fmt: skip
  add("--compare", nargs="+", metavar="FILE.json", help="put reports side by side")
  add("--dtype", choices=FLOAT_TYPES, help="of weights and computation; default as stored")
  add("--quantization", choices=("int8", "w8a8", "int4"), help="weights of 8 or 4 bits")
  add("--mesh", metavar="AXES", help="as data=2,fsdp=2,tensor=1; default all devices on data")
  add("--batch_size", type=int, default=8, metavar="B", help="rows at once; default 8")
  add("--limit", type=int, metavar="N", help="only the first N documents, or items of a task")
  add("--seed", type=cli.seed, default=0, help="of few-shot examples and of sampling; default 0")
  add(
    "--check_overlap", metavar="TRAIN_GLOB",
    help="which of the items evaluated share 13 words in a row with this training data",
  )  # fmt: skip

  of_data = parser.add_argument_group("perplexity of documents").add_argument
  of_data(
    "--data", metavar="GLOB",
    help="records (JSON, parquet) or text, compressed or not, local, gs:// or s3://; 'stdlib': the"
    " Python standard library; 'config:FILE.py': the data of a training config",
  )  # fmt: skip
  of_data("--split", choices=_SPLITS, help="of stdlib and config:FILE; default validation")
  of_data(
    "--source", choices=("jsonl", "text", "auto", "datasets"),
    help="what --data is, where its name does not say; datasets: NAME_OR_PATH[#SPLIT]",
  )  # fmt: skip
  of_data("--text_key", metavar="KEY", help="field of a record that holds the text; default text")
  of_data("--seq_len", type=int, metavar="T", help="tokens of a window; default the model's")
  of_data(
    "--stride", type=int, metavar="N",
    help="windows begin N tokens apart, each token scored in the first that holds it; default T",
  )  # fmt: skip

  of_tasks = parser.add_argument_group("tasks (pip install 'gptneo_jax[eval]')").add_argument
  of_tasks(
    "--tasks", metavar="A,B",
    help="of lm-evaluation-harness; 'gptneo_paper': the published table; 'quick': a first look",
  )  # fmt: skip
  of_tasks("--include_path", metavar="DIR", help="folder of tasks of your own, as YAML")
  of_tasks("--task_data", metavar="DIR", help="folder of local data for tasks that can use it")
  of_tasks("--num_fewshot", type=int, metavar="K", help="examples before each item")
  of_tasks("--log_samples", action="store_true", help="write every item to FILE.samples.jsonl")
  of_tasks("--cache", metavar="FILE", help="answers of the model, kept for the next time")

  of_labels = parser.add_argument_group("predictions of a fine-tuned head").add_argument
  of_labels(
    "--labelled", metavar="FILE",
    help="records with labels, as in training; of one label each the picture FILE.png shows which"
    " is taken for which",
  )  # fmt: skip
  of_labels("--columns", metavar="ROLE=FIELD,…", help="what the fields are; default as in training")

  of_answers = parser.add_argument_group("answers").add_argument
  of_answers(
    "--answers", metavar="FILE.jsonl", help='lines of {"prompt": …, "reference": … or [several]}'
  )
  of_answers("--max_new_tokens", type=int, default=128, metavar="N", help="default 128")
  of_answers(
    "--judge", metavar="WHO",
    help="who scores answers: URL of an OpenAI-compatible server, or a model as --checkpoint",
  )  # fmt: skip
  return parser
