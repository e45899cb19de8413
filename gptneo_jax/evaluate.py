"""Measures a model: perplexity of documents, harness tasks, its answers, its predictions.

  python -m gptneo_jax.evaluate --checkpoint runs/tiny --data stdlib --output tiny.json
  python -m gptneo_jax.evaluate --checkpoint DIR --data 'pile/test.jsonl.zst' --output pile.json
  python -m gptneo_jax.evaluate --checkpoint DIR --data GLOB --stride 512 --output strided.json
  python -m gptneo_jax.evaluate --checkpoint DIR --tasks lambada_openai,piqa --output tasks.json
  python -m gptneo_jax.evaluate --checkpoint DIR --tasks gptneo_paper --output paper.json
  python -m gptneo_jax.evaluate --checkpoint DIR --answers FILE.jsonl --judge MODEL --output a.json
  python -m gptneo_jax.evaluate --checkpoint runs/spam --labelled test.tsv --output spam.json
  python -m gptneo_jax.evaluate --compare a.json b.json --output both.json

FILE.json holds everything needed to reproduce its numbers; a table (FILE.md) and a picture
(FILE.png) are written beside it. A --data run that was interrupted resumes when the same command is
given again, and ends with the same numbers to the last bit.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gptneo_jax import cli, data, engine, model_io, sharding
from gptneo_jax.axes import round_up
from gptneo_jax.errors import UserError, user_errors
from gptneo_jax.evals import (
  comparison,
  flags,
  labelled,
  perplexity,
  provenance,
  report,
  report_tables,
)
from gptneo_jax.evals.resume_file import ResumeFile
from gptneo_jax.generation.requests import require_tokenizer
from gptneo_jax.sharding import batch_ways
from gptneo_jax.training import config_file

_Items = list[tuple[str, str]]  # name and text of each item that was evaluated


def main(argv: Sequence[str] | None = None) -> int:
  args = flags.parse(argv, __doc__)
  if args.compare:
    return _compare(args)
  corpus = _open_corpus(args) if args.data else None
  lm = _load(args)
  found = _provenance(args, lm) | {"results": {}}

  items: _Items = []
  resume_file = None
  if corpus is not None:
    resume_file = _measure_documents(args, lm, corpus, found)
  if args.tasks:
    items += _run_harness_tasks(args, lm, found)
  if args.answers:
    items += _evaluate_answers(args, lm, found)
  if args.labelled:
    _evaluate_labelled(args, lm, found)
  if args.check_overlap:
    _check_overlap(args, corpus, items, found)
  if not found["results"]:
    missing = found["tasks"]["missing"].items()
    raise UserError("nothing was measured: " + "; ".join(f"{task}: {why}" for task, why in missing))

  notes = report.write(found, args.output)
  if confusion := found.get("labelled", {}).get("confusion"):
    notes += labelled.draw_confusion(
      confusion["labels"], confusion["counts"], pathlib.Path(args.output).with_suffix(".png"),
      f"{report_tables.name(found)}: {args.labelled}",
    )  # fmt: skip
  if resume_file is not None:
    resume_file.remove()
  print(report_tables.markdown(found), end="")
  _print_notes(args.output, notes)
  if places := list(report.not_finite(found)):
    print(f"error: not finite, null in {args.output}: {', '.join(places)}", file=sys.stderr)
    return 1
  return 0


def _compare(args: argparse.Namespace) -> int:
  reports = [report.read(path) for path in args.compare]
  notes = comparison.write(reports, args.compare, args.output)
  print(comparison.markdown(reports), end="")
  _print_notes(args.output, notes)
  return 0


def _print_notes(output: str, notes: Sequence[str]) -> None:
  for note in notes:
    print(note, file=sys.stderr)
  print(f"written to {output}, with a table and a picture beside it", file=sys.stderr)


# --- documents and model --------------------------------------------------------------------------


class _Corpus(NamedTuple):
  """Documents of a split of a data config."""

  config: data.DataConfig
  split: str

  def documents(self, limit: int | None) -> Iterator[data.Document]:
    """The first `limit` documents, or all. Raises DataError at once if there is no source."""
    return data.evaluation_documents(self.config, self.split, limit or 0)


def _open_corpus(args: argparse.Namespace) -> _Corpus:
  """What --data names. Raises UserError if it is not there."""
  if args.data == "stdlib" or args.data.startswith("config:"):
    for flag in ("source", "text_key"):
      if getattr(args, flag) is not None:
        raise UserError(f"--{flag} says how files are read; {args.data} says so itself")
  if args.data.startswith("config:"):
    section = config_file.load(args.data.removeprefix("config:")).data.to_dict()
    corpus = _Corpus(_data_config(**section), args.split or "validation")
  elif args.data == "stdlib":
    corpus = _Corpus(_data_config(source="stdlib"), args.split or "validation")
  else:
    if args.split:
      raise UserError(f"--split is for stdlib and config:FILE; all of {args.data} is evaluated")
    source = args.source or ("auto" if data.holds_records(args.data) else "text")
    config = _data_config(
      source=source, path=args.data, test_path=args.data, text_key=args.text_key or "text"
    )
    corpus = _Corpus(config, "test")
  corpus.documents(None)  # raises now, before the model is loaded
  return corpus


def _data_config(**fields: Any) -> data.DataConfig:
  with user_errors():
    return data.DataConfig(**fields)


def _load(args: argparse.Namespace) -> engine.LanguageModel:
  """The model with its tokenizer. Raises UserError where it cannot be evaluated as asked."""
  lm = engine.load(
    args.checkpoint, args.dtype, _mesh(args), adapter=args.adapter, quantization=args.quantization,
    step=args.step,
  )  # fmt: skip
  if args.tokenizer:
    lm.tokenizer = data.load_tokenizer(args.tokenizer)
  if lm.quantization == "w8a8" and (args.data or args.tasks):
    raise UserError(
      "w8a8 rounds activations only where text is generated: documents and tasks would be measured"
      " with int8 weights alone; give --quantization int8, or --answers"
    )
  tokenizer = require_tokenizer(lm, "evaluate")
  try:
    data.check_vocabulary(tokenizer, lm.config.vocab_size)
  except data.DataError as error:
    mismatch = str(error).partition(":")[0]
    raise UserError(
      f"{args.tokenizer or args.checkpoint}: it is the tokenizer of another model: {mismatch}"
    ) from None
  positions = lm.config.max_position_embeddings
  seq_len = args.seq_len or positions
  if seq_len > positions:
    raise UserError(f"--seq_len {seq_len} is more than the model's {positions} positions")
  if args.stride is not None and not 1 <= args.stride <= seq_len:
    raise UserError(f"--stride is {args.stride}; it is 1 to {seq_len}, the tokens of a window")
  return lm


def _mesh(args: argparse.Namespace) -> Any:
  """As --mesh says; else all devices on the axis `data`, but one for quantized weights."""
  if args.mesh is None:
    stored = pathlib.Path(args.checkpoint, model_io.QUANTIZED_FILE).is_file()
    return None if args.quantization or stored else sharding.make_mesh()
  sizes = dict(re.findall(r"(\w+)=(-?\d+)(?:,|$)", args.mesh))
  written = ",".join(f"{axis}={size}" for axis, size in sizes.items())
  if written != args.mesh or not sizes.keys() <= set(sharding.MESH_AXES):
    raise UserError(f"--mesh {args.mesh!r} is not of the form data=2,fsdp=1,tensor=1")
  with user_errors():
    of = lambda axis: int(sizes.get(axis, 1))
    return sharding.make_mesh(data=of("data"), fsdp=of("fsdp"), tensor=of("tensor"))


# --- the report -----------------------------------------------------------------------------------


def _provenance(args: argparse.Namespace, lm: engine.LanguageModel) -> dict[str, Any]:
  """What it takes to reproduce the report's numbers."""
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "arguments": {key: value for key, value in vars(args).items() if value is not None},
    "checkpoint": provenance.of_checkpoint(args.checkpoint, args.step, args.adapter),
    "tokenizer": provenance.of_tokenizer(lm),
    "model": lm.config.to_dict(),
    "parameters": lm.config.num_params(),
    "versions": provenance.of_software(),
    "hardware": provenance.of_hardware(lm.mesh),
    "seed": args.seed,
  }


def _measure_documents(
  args: argparse.Namespace, lm: engine.LanguageModel, corpus: _Corpus, found: dict[str, Any]
) -> ResumeFile:
  """Perplexity; adds `data` and `results.data`, for a subset `results.data/SUBSET`.

  Returns the file that an interrupted run resumes from, to be removed once the report is written.
  """
  seq_len = args.seq_len or lm.config.max_position_embeddings
  batch_size = round_up(args.batch_size, batch_ways(lm.mesh))
  about = {
    "source": args.data,
    "split": corpus.split if args.data == "stdlib" or args.data.startswith("config:") else "all",
    "text_key": corpus.config.text_key,
    "sha256": provenance.of_files(data.source_files(corpus.config, corpus.split)),
  }
  settings = {
    **{key: found[key] for key in ("checkpoint", "tokenizer", "model", "versions", "hardware")},
    "quantization": args.quantization,
    "data": about,
    "limit": args.limit,
    "seq_len": seq_len,
    "stride": args.stride,
    "batch_size": batch_size,
  }
  resume_file = ResumeFile(f"{args.output}.partial", settings)
  measured = perplexity.measure(
    lm,
    corpus.documents(args.limit),
    seq_len=seq_len,
    stride=args.stride,
    batch_size=batch_size,
    resume_file=resume_file,
  )
  subsets = measured.pop("subsets")
  found["results"]["data"] = measured.pop("all")
  found["results"] |= {f"data/{subset}": figures for subset, figures in subsets.items()}
  found["data"] = about | {"seq_len": seq_len, "stride": args.stride} | measured
  return resume_file


def _run_harness_tasks(
  args: argparse.Namespace, lm: engine.LanguageModel, found: dict[str, Any]
) -> _Items:
  """Harness tasks; adds `tasks` and `results.TASK`. Returns their items if they are needed.

  With --log_samples, items and answers are written to FILE.samples.jsonl.
  """
  from gptneo_jax.evals import contamination, harness

  tasks = harness.evaluate_tasks(
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
  found["results"] |= tasks.pop("results")
  samples = tasks.pop("samples", {})
  found["tasks"] = tasks
  if args.log_samples:
    report.write_samples(samples, pathlib.Path(args.output).with_suffix(".samples.jsonl"))
  return contamination.items_of_tasks(samples) if args.check_overlap else []


def _evaluate_answers(
  args: argparse.Namespace, lm: engine.LanguageModel, found: dict[str, Any]
) -> _Items:
  """Generated answers; adds `answers` and `results.answers`. Returns prompts with references."""
  from gptneo_jax.evals import qa_eval, qa_file

  answers = qa_eval.evaluate(
    lm,
    args.answers,
    judge=args.judge,
    max_new_tokens=args.max_new_tokens,
    batch_size=args.batch_size,
    limit=args.limit,
    seed=args.seed,
    output=args.output,
  )
  found["results"]["answers"] = answers.pop("metrics")
  found["answers"] = answers
  return [
    (question.location, " ".join((question.prompt, *question.references)))
    for question in itertools.islice(qa_file.read(args.answers), args.limit)
  ]


def _evaluate_labelled(
  args: argparse.Namespace, lm: engine.LanguageModel, found: dict[str, Any]
) -> None:
  """Predictions against labels; adds `labelled` and `results.labelled`."""
  with cli.Bar(desc="predict", unit=" rows", delay=2) as bar:
    measured = labelled.evaluate(
      lm, args.labelled, given=args.columns, batch_size=args.batch_size, limit=args.limit,
      progress=bar.at,
    )  # fmt: skip
  found["results"]["labelled"] = measured.pop("metrics")
  found["labelled"] = measured


def _check_overlap(
  args: argparse.Namespace, corpus: _Corpus | None, items: _Items, found: dict[str, Any]
) -> None:
  """Which items and documents share long n-grams with the training data; adds `overlap`."""
  from gptneo_jax.evals import contamination

  if corpus is not None:
    items += [(document.location, document.text) for document in corpus.documents(args.limit)]
  found["overlap"] = contamination.find(items, args.check_overlap)


if __name__ == "__main__":
  cli.guarded(main)
