"""Measures a model: perplexity of documents, tasks of lm-evaluation-harness, its answers.

  python -m gptneo_jax.evaluate --checkpoint runs/tiny --data stdlib --output tiny.json
  python -m gptneo_jax.evaluate --checkpoint DIR --data 'pile/test.jsonl.zst' --output pile.json
  python -m gptneo_jax.evaluate --checkpoint DIR --data GLOB --stride 512 --output strided.json
  python -m gptneo_jax.evaluate --checkpoint DIR --tasks lambada_openai,piqa --output tasks.json
  python -m gptneo_jax.evaluate --checkpoint DIR --tasks gptneo_paper --output paper.json
  python -m gptneo_jax.evaluate --checkpoint DIR --answers FILE.jsonl --judge MODEL --output a.json
  python -m gptneo_jax.evaluate --compare a.json b.json --output both.json

Beside FILE.json, which holds all that is needed to have the numbers again, a table (FILE.md) and a
picture (FILE.png) are written. A long --data run that was stopped goes on when the same command is
given again, and ends with the same numbers to the last bit.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from gptneo_jax import cli, data, engine, model_io, sharding
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.evals import comparison, perplexity, provenance, report, report_tables
from gptneo_jax.evals.resume_file import ResumeFile
from gptneo_jax.generation.requests import require_tokenizer
from gptneo_jax.training import config_file

_SPLITS = ("train", "validation", "test")
_ONLY_WITH = {
  "data": ("split", "source", "text_key", "seq_len", "stride"),
  "tasks": ("include_path", "task_data", "num_fewshot", "log_samples", "cache"),
  "answers": ("judge",),
}


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  if args.compare:
    return _compare(args)
  _check(args)
  config, split = _data(args) if args.data else (None, "")
  lm = engine.load(
    args.checkpoint, args.dtype, _mesh(args), adapter=args.adapter, quantise=args.quantise,
    step=args.step,
  )  # fmt: skip
  if args.tokenizer:
    lm.tokenizer = data.load_tokenizer(args.tokenizer)
  _check_model(args, lm)
  results: dict[str, Any] = {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "arguments": {key: value for key, value in vars(args).items() if value is not None},
    "checkpoint": provenance.of_checkpoint(args.checkpoint, args.step, args.adapter),
    "tokenizer": provenance.of_tokenizer(lm),
    "model": lm.config.to_dict(),
    "parameters": lm.config.num_params(),
    "versions": provenance.of_software(),
    "hardware": provenance.of_hardware(lm.mesh),
    "seed": args.seed,
    "results": {},
  }
  items: list[tuple[str, str]] = []
  partial = _documents(args, lm, config, split, results) if config is not None else None
  if args.tasks:
    items += _tasks(args, lm, results)
  if args.answers:
    items += _answers(args, lm, results)
  if args.check_overlap:
    _overlap(args, config, split, items, results)
  if not results["results"]:
    missing = results["tasks"]["missing"].items()
    raise UserError("nothing was measured: " + "; ".join(f"{task}: {why}" for task, why in missing))
  notes = report.write(results, args.output)
  if partial is not None:
    partial.remove()
  print(report_tables.markdown(results), end="")
  _say_where(args.output, notes)
  if lost := list(report.not_finite(results)):
    print(f"error: not finite, null in {args.output}: {', '.join(lost)}", file=sys.stderr)
    return 1
  return 0


def _compare(args: argparse.Namespace) -> int:
  _check_output(args, "comparison")
  reports = [report.read(path) for path in args.compare]
  notes = comparison.write(reports, args.compare, args.output)
  print(comparison.markdown(reports), end="")
  _say_where(args.output, notes)
  return 0


def _say_where(output: str, notes: Sequence[str]) -> None:
  for note in notes:
    print(note, file=sys.stderr)
  print(f"written to {output}, with a table and a picture beside it", file=sys.stderr)


# --- what is measured -----------------------------------------------------------------------------


def _documents(
  args: argparse.Namespace, lm: engine.LanguageModel, config: data.DataConfig, split: str,
  results: dict[str, Any],
) -> ResumeFile:  # fmt: skip
  """Perplexity; adds `data` and `results.data`, of a subset `results.data/SUBSET`.

  Returns what was kept for the case of a stop, of no use once the report is written.
  """
  seq_len = args.seq_len or lm.config.max_position_embeddings
  ways = lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
  batch_size = -(-args.batch_size // ways) * ways
  about = {
    "source": args.data,
    "split": split if args.data == "stdlib" or args.data.startswith("config:") else "all",
    "text_key": config.text_key,
    "sha256": provenance.of_files(data.source_files(config, split)),
  }
  settings = {
    **{key: results[key] for key in ("checkpoint", "tokenizer", "model", "versions", "hardware")},
    "quantise": args.quantise,
    "data": about,
    "limit": args.limit,
    "seq_len": seq_len,
    "stride": args.stride,
    "batch_size": batch_size,
  }
  partial = ResumeFile(f"{args.output}.partial", settings)
  measured = perplexity.measure(
    lm,
    data.evaluation_documents(config, split, args.limit or 0),
    seq_len=seq_len,
    stride=args.stride,
    batch_size=batch_size,
    partial=partial,
  )
  subsets = measured.pop("subsets")
  results["results"]["data"] = measured.pop("all")
  results["results"] |= {f"data/{subset}": figures for subset, figures in subsets.items()}
  results["data"] = about | {"seq_len": seq_len, "stride": args.stride} | measured
  return partial


def _tasks(
  args: argparse.Namespace, lm: engine.LanguageModel, results: dict[str, Any]
) -> list[tuple[str, str]]:
  """Tasks of the harness; adds `tasks` and `results.TASK`. Returns their items, if to be compared.

  Answers with --log_samples are written to FILE.samples.jsonl.
  """
  from gptneo_jax.evals import harness

  found = harness.evaluate_tasks(
    lm,
    [task for name in args.tasks.split(",") if (task := name.strip())],
    include_path=args.include_path,
    task_data=args.task_data,
    num_fewshot=args.num_fewshot,
    batch_size=args.batch_size,
    limit=args.limit,
    log_samples=args.log_samples or bool(args.check_overlap),
    seed=args.seed,
    cache=args.cache,
  )
  results["results"] |= found.pop("results")
  samples = found.pop("samples", {})
  results["tasks"] = found
  if args.log_samples:
    report.write_samples(samples, pathlib.Path(args.output).with_suffix(".samples.jsonl"))
  if not args.check_overlap:
    return []
  from gptneo_jax.evals import contamination

  return contamination.items_of_tasks(samples)


def _answers(
  args: argparse.Namespace, lm: engine.LanguageModel, results: dict[str, Any]
) -> list[tuple[str, str]]:
  """Generated answers against references; adds `answers` and `results.answers`. Returns items."""
  from gptneo_jax.evals import qa_eval, qa_file

  found = qa_eval.evaluate(
    lm,
    args.answers,
    judge=args.judge,
    max_new_tokens=args.max_new_tokens,
    batch_size=args.batch_size,
    limit=args.limit,
    seed=args.seed,
    output=args.output,
  )
  results["results"]["answers"] = found.pop("metrics")
  results["answers"] = found
  return [
    (question.location, " ".join((question.prompt, *question.references)))
    for question in itertools.islice(qa_file.read(args.answers), args.limit)
  ]


def _overlap(
  args: argparse.Namespace, config: data.DataConfig | None, split: str,
  items: list[tuple[str, str]], results: dict[str, Any],
) -> None:  # fmt: skip
  """Items that share long n-grams with training data; adds `overlap`."""
  from gptneo_jax.evals import contamination

  if config is not None:
    documents = data.evaluation_documents(config, split, args.limit or 0)
    items += [(document.location, document.text) for document in documents]
  results["overlap"] = contamination.find(items, args.check_overlap)


# --- what is asked for ----------------------------------------------------------------------------


def _data(args: argparse.Namespace) -> tuple[data.DataConfig, str]:
  """The source of the documents, and which of its splits; raises UserError if it is not there."""
  if args.data == "stdlib" or args.data.startswith("config:"):
    for flag in ("source", "text_key"):
      if getattr(args, flag) is not None:
        raise UserError(f"--{flag} says how files are read; {args.data} says so itself")
  if args.data.startswith("config:"):
    section = config_file.load(args.data.removeprefix("config:")).data.to_dict()
    config, split = _data_config(**section), args.split or "validation"
  elif args.data == "stdlib":
    config, split = _data_config(source="stdlib"), args.split or "validation"
  else:
    if args.split:
      raise UserError(f"--split is for stdlib and config:FILE; all of {args.data} is evaluated")
    source = args.source or ("jsonl" if data.holds_records(args.data) else "text")
    config = _data_config(
      source=source, path=args.data, test_path=args.data, text_key=args.text_key or "text"
    )
    split = "test"
  data.evaluation_documents(config, split)  # says at once if there is nothing
  return config, split


def _data_config(**fields: Any) -> data.DataConfig:
  with user_errors():
    return data.DataConfig(**fields)


def _mesh(args: argparse.Namespace) -> Any:
  """All devices, rows split over them, unless --mesh says otherwise; one for quantised weights."""
  if args.mesh is None:
    stored = pathlib.Path(args.checkpoint, model_io.QUANTISED_FILE).is_file()
    return None if args.quantise or stored else sharding.make_mesh()
  sizes = dict(re.findall(r"(\w+)=(-?\d+)(?:,|$)", args.mesh))
  written = ",".join(f"{axis}={size}" for axis, size in sizes.items())
  if written != args.mesh or not sizes.keys() <= set(sharding.MESH_AXES):
    raise UserError(f"--mesh {args.mesh!r} is not of the form data=2,fsdp=1,tensor=1")
  with user_errors():
    of = lambda axis: int(sizes.get(axis, 1))  # noqa: E731
    return sharding.make_mesh(data=of("data"), fsdp=of("fsdp"), tensor=of("tensor"))


def _check(args: argparse.Namespace) -> None:
  """Raises UserError for what is wrong whatever the model."""
  if not args.checkpoint:
    raise UserError("no --checkpoint; give a run's --workdir, a Hugging Face folder or a hub id")
  if not (args.data or args.tasks or args.answers):
    raise UserError("nothing to evaluate; give --data GLOB, --tasks NAMES or --answers FILE.jsonl")
  _check_output(args, "evaluation")
  for flag in ("batch_size", "seq_len", "limit", "max_new_tokens"):
    value = getattr(args, flag)
    if value is not None and value < 1:
      raise UserError(f"--{flag} is {value}; it is at least 1")
  for needed, flags in _ONLY_WITH.items():
    for flag in flags:
      given = getattr(args, flag) is not None and getattr(args, flag) is not False
      if given and not getattr(args, needed):
        raise UserError(f"--{flag} is for --{needed}")


def _check_output(args: argparse.Namespace, default: str) -> None:
  """Sets --output where it is not given, to a name that is free; raises UserError for a bad one."""
  if args.output is None:
    names = (f"{default}_{n}.json" if n > 1 else f"{default}.json" for n in itertools.count(1))
    args.output = next(name for name in names if not os.path.exists(name))
  if not args.output.endswith(".json"):
    raise UserError(f"--output is {args.output!r}; give the report's file, NAME.json")
  folder = pathlib.Path(args.output).parent
  if not folder.is_dir():
    raise UserError(f"--output {args.output}: there is no folder {folder}; make it first")
  if not os.access(folder, os.W_OK):
    raise UserError(f"--output {args.output}: the folder {folder} cannot be written to")


def _check_model(args: argparse.Namespace, lm: engine.LanguageModel) -> None:
  """Raises UserError where the model cannot be evaluated as asked."""
  if lm.quantised == "w8a8" and (args.data or args.tasks):
    raise UserError(
      "w8a8 rounds activations only where text is generated: documents and tasks would be measured"
      " with int8 weights alone; give --quantise int8, or --answers"
    )
  tokenizer = require_tokenizer(lm, "evaluate")
  try:
    data.check_vocabulary(tokenizer, lm.config.vocab_size)
  except data.DataError as error:
    found = str(error).partition(":")[0]
    raise UserError(
      f"{args.tokenizer or args.checkpoint}: it is the tokenizer of another model: {found}"
    ) from None
  positions = lm.config.max_position_embeddings
  seq_len = args.seq_len or positions
  if seq_len > positions:
    raise UserError(f"--seq_len {seq_len} is more than the model's {positions} positions")
  if args.stride is not None and not 1 <= args.stride <= seq_len:
    raise UserError(f"--stride is {args.stride}; it is 1 to {seq_len}, the tokens of a window")


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog="python -m gptneo_jax.evaluate",
    description=__doc__,
  )
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
  types = ("float32", "bfloat16", "float16")
  add("--dtype", choices=types, help="of weights and computation; default as stored")
  add("--quantise", choices=("int8", "w8a8", "int4"), help="weights of 8 or 4 bits")
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
    help="records (JSON, parquet) or text, packed or not, local, gs:// or s3://; 'stdlib': the"
    " Python standard library; 'config:FILE.py': the data of a training config",
  )  # fmt: skip
  of_data("--split", choices=_SPLITS, help="of stdlib and config:FILE; default validation")
  of_data(
    "--source", choices=("jsonl", "text", "datasets"),
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


if __name__ == "__main__":
  cli.guarded(main)
