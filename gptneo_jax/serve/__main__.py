"""Serves a model over HTTP in the form of OpenAI's API.

  python -m gptneo_jax.serve --checkpoint DIR
  curl http://localhost:8000/v1/completions -d '{"prompt": "import ", "max_tokens": 40}'

Many requests are decoded together, and each gets the text that it would get alone. /v1/completions
and /v1/chat/completions serve a language model, /v1/classify one with a head. Ctrl-C or SIGTERM
lets the requests that have begun finish.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import socket
from collections.abc import Sequence

import jax

from gptneo_jax import cli, engine
from gptneo_jax.config import FLOAT_TYPES
from gptneo_jax.errors import UserError
from gptneo_jax.generation import continuous, quantization
from gptneo_jax.generation.slots import bytes_of_slot, slot_columns

_MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
  except ImportError as error:
    raise UserError(f"the server needs {error.name}: pip install 'gptneo_jax[serve]'") from None
  from gptneo_jax.serve import app, server
  from gptneo_jax.serve.batching import Generator

  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # Of two hundred programs most compile in less than the second that jax would keep one for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
  listener = _listen(args.host, args.port)
  lm = engine.load(args.checkpoint, args.dtype, adapter=args.adapter,
                   quantization=args.quantization, step=args.step)  # fmt: skip
  if lm.tokenizer is None:
    raise UserError(
      f"{args.checkpoint} has no tokenizer, and clients send texts: put one into the folder"
      " (tokenizer.json), or convert the model again with it"
    )
  slots = args.slots or continuous.default_slots(lm.mesh)
  name = args.served_model_name or pathlib.Path(args.checkpoint).name
  generator = Generator(
    lm, slots=slots, kept_bytes=args.prefix_cache_mib * _MIB, waiting=args.queue
  )
  service = app.Service(lm, generator, name, args.api_key, tuple(args.cors))
  print(_said(lm, name, slots, listener), flush=True)
  with generator:
    server.run(app.make_app(service), listener, generator, args.drain_seconds)
  return 0


def _listen(host: str, port: int) -> socket.socket:
  """Before the model is loaded: a port that is taken is known at once."""
  try:
    return socket.create_server((host, port), backlog=2048, reuse_port=False)
  except (OSError, OverflowError) as error:
    raise UserError(
      f"cannot listen on {host}:{port}: {getattr(error, 'strerror', error)}; give another --port"
    ) from None


def _said(lm, name: str, slots: int, listener: socket.socket) -> str:
  host, port = listener.getsockname()[:2]
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.unstacked_params))
  lines = [f"{lm}"]
  if lm.config.has_lm_head:
    positions = lm.config.max_position_embeddings
    slot = bytes_of_slot(lm.config, slot_columns(positions, positions))
    lines.append(
      f"memory: {weights / _MIB:,.0f} MiB of weights, {slots} slots of at most"
      f" {slot / _MIB:,.0f} MiB"
    )
  return "\n".join([*lines, f"serving {name} at http://{host}:{port}"])


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog="python -m gptneo_jax.serve", description=__doc__)
  add = parser.add_argument
  add("--checkpoint", metavar="DIR", required=True, help="folder, or a hub id")
  add("--host", default="127.0.0.1", help="default 127.0.0.1; 0.0.0.0: all addresses")
  add("--port", type=int, default=8000, help="default 8000; 0: any that is free")
  add("--slots", type=_positive, metavar="N", help="decoded together; default 16, accelerator 64")
  add("--queue", type=int, default=256, metavar="N", help="that may wait; default 256")
  add("--api_key", metavar="KEY", help="clients must send 'Authorization: Bearer KEY'")
  add("--served_model_name", metavar="NAME", help="default: the folder's name")
  add(
    "--cors", action="append", default=[], metavar="ORIGIN", help="whose pages may call; '*': all"
  )
  add(
    "--prefix_cache_mib",
    type=int,
    default=1024,
    metavar="N",
    help="memory for conversations that may go on; default 1024, 0: none",
  )
  add(
    "--drain_seconds",
    type=float,
    default=30.0,
    metavar="S",
    help="how long requests may go on after SIGTERM; default 30",
  )
  add("--quantization", choices=quantization.MODES, help="of the weights")
  add("--adapter", metavar="DIR", help="LoRA adapter in PEFT's form, merged into the weights")
  add("--step", metavar="N|best", help="which checkpoint; default the newest")
  add("--dtype", choices=FLOAT_TYPES, help="of weights and computation; default as stored")
  return parser  # fmt: skip


def _positive(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
  return int(text)


if __name__ == "__main__":
  cli.guarded(main)
