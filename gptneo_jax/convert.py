"""Converts Hugging Face weights to Orbax checkpoints and back, and verifies the result."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Sequence

from gptneo_jax import cli, interop
from gptneo_jax.checkpoints.lazy import LazyArray
from gptneo_jax.checkpoints.step_folders import find_checkpoint
from gptneo_jax.config import FLOAT_TYPES, ModelConfig
from gptneo_jax.data import commit_of_folder
from gptneo_jax.examples import TaskSpec, instruction, task_file
from gptneo_jax.interop import peft_files
from gptneo_jax.model import lora

_EXAMPLES = """\
examples:
  python -m gptneo_jax.convert hf-to-orbax EleutherAI/gpt-neo-125m checkpoints/neo_125m
  python -m gptneo_jax.convert verify      EleutherAI/gpt-neo-125m checkpoints/neo_125m
  python -m gptneo_jax.convert orbax-to-hf runs/my_run my_model --dtype bfloat16
  python -m gptneo_jax.convert orbax-to-hf runs/my_run my_model --step 2000
  python -m gptneo_jax.convert orbax-to-hf runs/my_lora my_adapter --adapter_only

A checkpoint folder holds numbered Orbax steps, config.json and the tokenizer: it is the --workdir
of gptneo_jax.train, and generate, evaluate and gptneo_jax.load read it. Tensors are converted one
by one: memory does not grow with the model.
"""


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
  return args.run(args)


def _hf_to_orbax(args: argparse.Namespace) -> int:
  with cli.Bar(unit="B", unit_scale=True) as bar:
    model = interop.hf_to_orbax(
      args.source, args.destination, dtype=args.dtype, ignore=args.ignore,
      transform=_merging(args.adapter), tokenizer=not args.no_tokenizer,
      tokenizer_from=args.tokenizer, progress=bar.at,
    )  # fmt: skip
  config, commit = model.config, commit_of_folder(model.folder)
  of_hub = f", of {args.source} at {commit[:7]}" if commit else ""
  print(
    f"{args.destination}: {config.model_type}, {config.num_params():,} parameters in"
    f" {config.param_dtype}, step 0{of_hub}"
  )
  return 0


def _orbax_to_hf(args: argparse.Namespace) -> int:
  if args.adapter_only:
    interop.export_adapter(args.source, args.destination, step=args.step)
    print(f"{args.destination}: ready for PEFT's PeftModel.from_pretrained")
    return 0
  task = task_file.load(find_checkpoint(args.source, args.step)[0])
  with cli.Bar(unit="B", unit_scale=True) as bar:
    interop.orbax_to_hf(
      args.source, args.destination, step=args.step, dtype=args.dtype,
      transform=_merging(args.adapter), tokenizer=not args.no_tokenizer,
      tokenizer_from=args.tokenizer, chat_template=_chat_template(task),
      beside={} if task is None else {task_file.FILE: task.to_json()}, progress=bar.at,
    )  # fmt: skip
  print(f"{args.destination}: ready for transformers' from_pretrained")
  return 0


def _chat_template(task: TaskSpec | None) -> str | None:
  """Transformers' form of the template that a model was fine-tuned with, if it has that form."""
  if task is None or task.task != "instruction":
    return None
  try:
    return instruction.template_of(task).jinja()
  except ValueError as error:
    print(f"warning: without a chat template: {error}", file=sys.stderr)
    return None


def _merging(folder: str | None):
  """A function that merges the adapter of a folder into each parameter as it is read, or None."""
  if folder is None:
    return None
  read = functools.cache(lambda config: peft_files.read_adapter(folder, config))

  def transform(config: ModelConfig, path: str, leaf: LazyArray) -> LazyArray:
    adapter = read(config)
    return dataclasses.replace(
      leaf, read=lambda index: lora.merge_slice(adapter, path, index, leaf.read(index))
    )

  return transform


def _verify(args: argparse.Namespace) -> int:
  report = interop.verify(args.source, args.destination, length=args.length, step=args.step)
  difference = report["max_abs_difference"]
  print(
    f"largest difference of logits {difference:.2e} (relative {report['max_rel_difference']:.2e}),"
    f" greedy agreement {report['greedy_agreement']:.2%}, at {report['length']} tokens;"
    f" {report['file']}"
  )
  if report["not_finite"]:
    weight = report["first_weight_not_finite"]
    where = f"; {weight} of the checkpoint holds a NaN or an infinity" if weight else ""
    print(f"error: {report['not_finite']} outputs are not finite{where}", file=sys.stderr)
    return 1
  if difference > report["tolerance"]:
    print(f"error: the difference is above {report['tolerance']}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog="python -m gptneo_jax.convert",
    description=__doc__,
    epilog=_EXAMPLES,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def command(name: str, run, source: str, destination: str, summary: str, details: str):
    added = commands.add_parser(name, help=summary, description=f"{summary} {details}")
    added.add_argument("source", metavar="SRC", help=source)
    added.add_argument("destination", metavar="DST", help=destination)
    added.set_defaults(run=run)
    return added

  hf = "hub id, or folder with config.json and model.safetensors, pytorch_model.bin or"
  hf += " flax_model.msgpack"
  new = "new or empty folder"
  ours = "checkpoint folder, such as a run's --workdir"
  to_orbax = command(
    "hf-to-orbax", _hf_to_orbax, hf, new,
    "Imports a Hugging Face GPT-Neo or GPT-2.",
    "DST becomes a checkpoint folder, with step 0.",
  )  # fmt: skip
  to_orbax.add_argument(
    "--ignore",
    action="append",
    default=[],
    metavar="PATTERN",
    help="leave out tensors that are no part of the model, such as 'v_head.*'; may be repeated",
  )
  to_hf = command(
    "orbax-to-hf", _orbax_to_hf, ours, new,
    "Exports a folder that transformers opens.",
    "It gets weights (in several files above 5 GB), configs, tokenizer and a model card.",
  )  # fmt: skip
  to_hf.add_argument(
    "--adapter_only",
    action="store_true",
    help="of a run of LoRA: its adapter alone, in PEFT's format, not merged into the weights",
  )
  verify = command(
    "verify", _verify, "model or checkpoint folder", "the other of the two; gets parity.json",
    "Compares logits with PyTorch's.",
    "Runs transformers (eager attention) and gptneo_jax in float32 on the same random ids, one row"
    f" of them left-padded. Exit status 1 if logits differ by more than {interop.TOLERANCE}.",
  )  # fmt: skip
  verify.add_argument(
    "--length",
    type=int,
    help="tokens of a row; default twice the window of local attention and 16 more",
  )
  for added in (to_hf, verify):
    added.add_argument(
      "--step", metavar="N|best",
      help="which checkpoint of a gptneo_jax folder, 'best' by eval/loss; default the newest;"
      " FOLDER/N is the same",
    )  # fmt: skip
  for added in (to_orbax, to_hf):
    added.add_argument(
      "--dtype",
      choices=FLOAT_TYPES,
      help="type of the weights in DST; default the stored type",
    )
    added.add_argument(
      "--adapter", metavar="DIR", help="merge this LoRA adapter, in PEFT's format, into the weights"
    )
    tokenizer = added.add_mutually_exclusive_group()
    tokenizer.add_argument(
      "--tokenizer", metavar="DIR_OR_ID", help="use this tokenizer; default SRC's"
    )
    tokenizer.add_argument(
      "--no_tokenizer", action="store_true", help="convert without a tokenizer"
    )
  return parser


if __name__ == "__main__":
  cli.guarded(main)
