"""Labels, values, choices, entities or spans for the records of a file, as JSON lines.

  python -m gptneo_jax.predict --checkpoint runs/spam --input messages.csv
  echo "WINNER! Call 0900 now" | python -m gptneo_jax.predict --checkpoint runs/spam --input -
  python -m gptneo_jax.predict --checkpoint runs/squad --input questions.json --output answers.jsonl

Each line of the output is the prediction for one record, in their order, with probabilities. FILE
is of any kind that training reads (JSON, JSON lines, CSV, TSV, parquet, CoNLL, SQuAD), or one text
in each line; labels in it are not read. python -m gptneo_jax.evaluate --labelled FILE measures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from gptneo_jax import cli, engine
from gptneo_jax.config import FLOAT_TYPES
from gptneo_jax.errors import UserError
from gptneo_jax.generation import prediction


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  if args.batch_size < 1:
    raise UserError(f"--batch_size is {args.batch_size}; it is at least 1")
  lm = engine.load(args.checkpoint, args.dtype, adapter=args.adapter, step=args.step)
  records = prediction.read(lm, args.input, args.columns, labelled=False)
  with cli.Bar(desc="predict", unit=" rows", delay=2) as bar:
    said = prediction.predict(lm, records, batch_size=args.batch_size, progress=bar.at)
  with _output(args.output) as file:
    for one in said:
      file.write(json.dumps(one, ensure_ascii=False) + "\n")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog="python -m gptneo_jax.predict", description=__doc__)
  add = parser.add_argument
  add("--checkpoint", metavar="DIR", required=True, help="fine-tuned folder, or a hub id")
  add("--input", metavar="FILE", required=True, help="records; '-' is standard input")
  add("--output", metavar="FILE", help="of JSON lines; default: standard output")
  add("--columns", metavar="ROLE=FIELD,…", help="what the fields are; default: as in training")
  add(
    "--batch_size", type=int, default=prediction.ROWS, metavar="B", help="rows at once; default 8"
  )
  add("--step", metavar="N|best", help="which checkpoint; default the newest")
  add("--adapter", metavar="DIR", help="LoRA adapter in PEFT's form, merged into the weights")
  add("--dtype", choices=FLOAT_TYPES, help="of weights and computation; default as stored")
  return parser


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[TextIO]:
  if name is None:
    yield sys.stdout
    return
  try:
    with open(name, "w", encoding="utf-8") as file:
      yield file
  except OSError as error:
    raise UserError(f"--output {name}: {error.strerror}") from None


if __name__ == "__main__":
  cli.guarded(main)
