"""Continues a text with a trained model.

  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog"
  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog" --temperature 0.8 --seed 1

The prompt and its continuation go to standard output. Without --temperature, --top_k or --do_sample
the likeliest token is taken each time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gptneo_jax import cli, engine


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  options = {
    name: value
    for name in ("max_new_tokens", "temperature", "top_k")
    if (value := getattr(args, name)) is not None
  }
  # Asking how to sample is asking to sample.
  options["do_sample"] = args.do_sample or bool({"temperature", "top_k"} & set(options))
  prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
  lm = engine.load(args.checkpoint, args.dtype)
  texts = lm.generate(prompt, seed=args.seed, **options).texts
  assert texts is not None  # without a tokenizer a prompt of text is refused
  print(prompt + texts[0])
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m gptneo_jax.generate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--checkpoint", required=True, metavar="DIR",
    help="checkpoint folder, such as a run's --workdir; a Hugging Face folder or hub id works too",
  )  # fmt: skip
  parser.add_argument("--prompt", required=True, metavar="TEXT", help="'-' reads standard input")
  parser.add_argument("--max_new_tokens", type=int, metavar="N", help="default 20")
  parser.add_argument("--do_sample", action="store_true", help="draw tokens by their probability")
  parser.add_argument(
    "--temperature", type=float, help="sampling: below 1 sharper, above 1 flatter"
  )
  parser.add_argument(
    "--top_k", type=int, help="sampling: only the K likeliest; default 50, 0: all"
  )
  parser.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), help="of weights and computation; default as stored"
  )
  return parser


if __name__ == "__main__":
  cli.guarded(main)
