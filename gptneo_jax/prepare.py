"""Encodes documents once, into token shards that training reads at any place.

  python -m gptneo_jax.prepare 'pile/*.jsonl.zst' pile_ids --tokenizer openai-community/gpt2
  python -m gptneo_jax.train --config configs/neo_1p3b.py \\
    --config.data.source=shards --config.data.path=pile_ids

Started again it goes on: shards that are whole stay, missing and damaged ones are made. Any number
of machines that see the folder share the work: --part 0/8 … --part 7/8, one each, at any time, or
--ray. The shards do not depend on who makes them.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import tqdm

from gptneo_jax import cli
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.prepare import cleaning, duplicates, engines, units
from gptneo_jax.data.prepare.engines import Step
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.remote_folder import is_url
from gptneo_jax.data.token_shards import TokenShards, subsets_of
from gptneo_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  if not args.part:
    cli.require_one_process(
      "python -m gptneo_jax.prepare", ", or give each a part of the work, --part i/n", devices=False
    )
  settings = Settings(
    args.src, args.tokenizer, args.records, args.text_key, args.document, args.on_bad_record,
    args.validation_fraction, args.dedup, args.clean,
  )  # fmt: skip
  if is_url(args.dst):
    raise UserError(
      f"{args.dst}: shards are written to a local folder only; copy that there, and train with"
      " data.path=URL"
    )
  folder, began = pathlib.Path(args.dst), time.monotonic()
  names = units.begin(settings, folder)
  if args.dedup != "none":
    _do(duplicates.hash_files, settings, folder, args, " documents")
    if not duplicates.find(folder, names):
      print(f"part {args.part[0]}/{args.part[1]} has read its files; run it again when all have")
      return 0
  _do(units.run, settings, folder, args, " tokens")
  try:
    shards = TokenShards(args.dst)
    units.clear(folder)
    _say(shards, folder, time.monotonic() - began)
  except DataError as error:
    if not args.part:
      raise
    print(f"part {args.part[0]}/{args.part[1]} is done; {error}")
  return 0


def _do(
  step: Step, settings: Settings, folder: pathlib.Path, args: argparse.Namespace, unit: str
) -> None:
  """Shows the progress of a step."""
  if args.part:
    progress = engines.in_this_process(step, settings, folder, Part(*args.part))
  elif args.ray:
    progress = engines.on_ray(step, settings, folder)
  else:
    progress = engines.in_a_pool(step, settings, folder, args.workers or _cores())
  with tqdm.tqdm(unit=unit, unit_scale=True, desc=str(folder), disable=None) as bar:
    for message, count in progress:
      if message:
        bar.write(message, file=sys.stderr)
      bar.update(count)


def _say(shards: TokenShards, folder: pathlib.Path, seconds: float) -> None:
  for name, counts in duplicates.summary(folder).items():
    print(f"  {name}: {counts['removed']:,} of {counts['documents']:,} documents repeat others")
  documents = sum(manifest.documents for manifest in shards.manifests)
  held_out = sum(manifest.held_out for manifest in shards.manifests)
  for name, (count, tokens, size) in subsets_of(shards.manifests).items():
    known = f", {size / tokens:.2f} bytes a token" if size else ""  # not of TFRecords
    print(f"  {name}: {count:,} documents, {tokens:,} tokens{known}")
  print(
    f"{shards.folder}: {documents:,} documents, {shards.tokens:,} tokens in {len(shards.shards)}"
    f" shard(s); {held_out:,} held out for validation; {seconds:,.0f} s\n"
    f"train on it with --config.data.source=shards --config.data.path={shards.folder}"
  )


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog="python -m gptneo_jax.prepare", description=__doc__, of_one_process=False
  )
  add = parser.add_argument
  add("src", metavar="SRC_GLOB", help="files or folders, as data.path of the source 'auto'")
  add("dst", metavar="DST", help="folder of the shards")
  add("--tokenizer", required=True, metavar="T", help="hub id, folder or file; not 'train'")
  who = parser.add_mutually_exclusive_group()
  who.add_argument("--workers", type=_positive, metavar="N",
                   help="processes; default one for each core")  # fmt: skip
  who.add_argument("--ray", action="store_true", help="on the Ray cluster of RAY_ADDRESS, or here")
  who.add_argument("--part", type=_part, metavar="i/n", help="do part i of n, from 0, here")
  add("--records", type=_positive, default=Settings.records, metavar="N",
      help=f"of a file that make a shard; default {Settings.records:,}")  # fmt: skip
  add("--validation_fraction", type=_fraction, default=Settings.validation_fraction, metavar="F",
      help="of the documents, kept as text; default 0.01")  # fmt: skip
  add(
    "--text_key", default=Settings.text_key, metavar="KEY", help="field of a record; default text"
  )
  add("--document", default=Settings.document, choices=("file", "line", "paragraph"),
      help="what a document of a file of text is; default file")  # fmt: skip
  add(
    "--dedup",
    default="none",
    choices=duplicates.KINDS,
    help="leave out documents that repeat one before: its text, or nearly; default none",
  )
  add(
    "--clean",
    default="none",
    choices=cleaning.KINDS,
    help="nfc: Unicode's composed form, no control characters; ftfy: mends broken encodings;"
    " original: ftfy with NFKC, and WikiText's spacing undone, as gpt-neo did; default none",
  )
  add("--on_bad_record", default="stop", choices=("stop", "skip"), help="default stop")
  return parser


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
  return int(text)


def _part(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)/(\d+)", text)
  if not match or not int(match[1]) < int(match[2]):
    raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
  return int(match[1]), int(match[2])


def _fraction(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1)")
  return value


if __name__ == "__main__":
  cli.guarded(main)
