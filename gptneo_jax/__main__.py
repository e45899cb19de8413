"""The JAX/Flax home of GPT-Neo. Its programs, each with --help:"""

import ast
import pathlib
import sys

from gptneo_jax import cli
from gptneo_jax.errors import UserError

_PROGRAMS = ("train", "plan", "convert", "generate", "evaluate", "predict", "prepare", "serve")


def main() -> int:
  """Lists the programs, each with the first line of its docstring."""
  if sys.argv[1:2] and sys.argv[1] in _PROGRAMS:
    raise UserError(f"python -m gptneo_jax.{sys.argv[1]}, with a dot")
  print(__doc__, end="\n\n")
  for program in _PROGRAMS:
    file = pathlib.Path(__file__).with_name(f"{program}.py")
    if not file.exists():  # a room that is a program
      file = file.with_suffix("") / "__main__.py"
    source = file.read_text(encoding="utf-8")
    first, *_ = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    print(f"  python -m gptneo_jax.{program:10}{first}")
  return 0


if __name__ == "__main__":
  cli.guarded(main)
