"""Continues texts with a trained model.

  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog"
  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog" --temperature 0.8 --seed 1
  python -m gptneo_jax.generate --checkpoint DIR --prompts FILE.jsonl --output jsonl
  python -m gptneo_jax.generate --checkpoint DIR --prompt - --output stream < FILE.txt
  python -m gptneo_jax.generate --checkpoint DIR --chat

Prompts come from the command line, from standard input ('-'), or from a file of JSON lines: texts,
or objects with "prompt". Options of generation have transformers' names and defaults; those that
say how to sample mean that it is to be sampled.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptneo_jax import cli, engine
from gptneo_jax.errors import UserError

_BATCH = 8
_INTEGERS = {
  "max_new_tokens": "new tokens at most; default 20",
  "max_length": "prompt and new tokens at most",
  "min_new_tokens": "no end of text before so many",
  "min_length": "no end of text before prompt and new tokens are so many",
  "num_beams": "beam search with so many",
  "num_return_sequences": "continuations of each prompt",
  "no_repeat_ngram_size": "no run of so many tokens twice",
  "pad_token_id": "what stands behind an end",
  "forced_bos_token_id": "first new token behind a prompt of one",
  "forced_eos_token_id": "last token at max_length",
  "prompt_lookup_num_tokens": "guess so many tokens from the text itself",
  "num_assistant_tokens": "guesses of the assistant at a time; default 5",
  "max_matching_ngram_size": "tokens that a looked-up guess follows; default 2",
}
_NUMBERS = {
  "repetition_penalty": "above 1: tokens that stand in the text become less likely",
  "length_penalty": "beams: above 0 for longer texts",
  "guidance_scale": "above 1: away from the negative prompt",
}
_SAMPLING = {
  "temperature": (float, "sampling: below 1 sharper, above 1 flatter"),
  "top_k": (int, "sampling: only the K likeliest; default 50, 0: all"),
  "top_p": (float, "sampling: only the likeliest that make up this probability"),
  "top_h": (float, "sampling: only the likeliest up to this share of the entropy"),
  "min_p": (float, "sampling: only what is at least this share of the likeliest"),
  "typical_p": (float, "sampling: only what is about as surprising as expected"),
  "epsilon_cutoff": (float, "sampling: only what is at least so likely"),
  "eta_cutoff": (float, "sampling: as epsilon_cutoff, lower where much is likely"),
}
_LISTS = {
  "eos_token_id": (int, "ids that end a text; default the tokenizer's, -1: none"),
  "stop_strings": (str, "texts that end a text"),
  "suppress_tokens": (int, "ids never to be chosen"),
  "begin_suppress_tokens": (int, "ids not to be chosen first"),
}
_JSON = {
  "bad_words_ids": "sequences of ids never to be made, as [[1, 2], [3]]",
  "sequence_bias": "what is added to sequences of ids, as [[[1, 2], -5.0]]",
  "exponential_decay_length_penalty": "lift of the end of text, as [start, factor]",
}


def main(argv: Sequence[str] | None = None) -> int:
  _run(_parser().parse_args(argv))
  return 0


def _run(args: argparse.Namespace) -> None:
  options = _options(args)
  if args.chat:
    if args.prompt or args.prompts:
      raise UserError("--chat asks for its texts; leave out --prompt and --prompts")
  elif not args.prompt and not args.prompts:
    raise UserError("no prompt; give --prompt TEXT, --prompt - for standard input, or --prompts")
  prompts = [] if args.chat else list(_prompts(args))
  lm = engine.load(args.checkpoint, args.dtype, quantise=args.quantise, step=args.step)
  if args.ignore_generation_config:
    lm.generation_config = {}
  if args.assistant:
    options["assistant_model"] = engine.load(args.assistant, args.dtype)
  if args.chat:
    _chat(lm, options, args)
  elif args.output == "stream":
    for prompt in prompts:
      print(prompt, end="", flush=True)
      for piece in lm.stream(prompt, seed=args.seed, **options):
        print(piece, end="", flush=True)
      print(flush=True)
  else:
    show = _as_json if args.output == "jsonl" else _as_text
    for start in range(0, len(prompts), args.batch_size):
      show(lm, prompts[start : start + args.batch_size], args.seed, options)


def _options(args: argparse.Namespace) -> dict[str, Any]:
  names = [*_INTEGERS, *_NUMBERS, *_SAMPLING, *_LISTS, *_JSON, "negative_prompt", "early_stopping"]
  options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  for name in _JSON:
    if name in options:
      try:
        options[name] = json.loads(options[name])
      except ValueError:
        raise UserError(f"--{name} {options[name]!r} is not JSON; {_JSON[name]}") from None
  if "early_stopping" in options:
    options["early_stopping"] = {"true": True, "false": False}.get(args.early_stopping, "never")
  if args.do_sample is not None:
    options["do_sample"] = args.do_sample
  elif set(_SAMPLING) & set(options):  # asking how to sample is asking to sample
    options["do_sample"] = True
  return options


def _prompts(args: argparse.Namespace) -> Iterator[str]:
  for prompt in args.prompt or []:
    yield sys.stdin.read() if prompt == "-" else prompt
  if not args.prompts:
    return
  path = pathlib.Path(args.prompts)
  try:
    text = sys.stdin.read() if args.prompts == "-" else path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--prompts {args.prompts}: cannot be read: {error}") from None
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    where = f"{args.prompts}:{number}"
    try:
      value = json.loads(line)
    except ValueError as error:
      raise UserError(f"{where}: not JSON: {error}") from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
      raise UserError(f'{where}: neither a text nor an object with the text "prompt"')
    if not prompt:
      raise UserError(f"{where}: the prompt is empty")
    yield prompt


def _as_text(lm: engine.LanguageModel, prompts: list[str], seed: int, options: dict) -> None:
  result = lm.generate(prompts, seed=seed, **options)
  assert result.texts is not None  # without a tokenizer a prompt of text is refused
  each = len(result.texts) // len(prompts)
  for b, text in enumerate(result.texts):
    print(prompts[b // each] + text, flush=True)


def _as_json(lm: engine.LanguageModel, prompts: list[str], seed: int, options: dict) -> None:
  """One object a line: prompt, text, tokens, and their log-probabilities where they are known."""
  guessed = "assistant_model" in options or "prompt_lookup_num_tokens" in options
  result = lm.generate(prompts, seed=seed, output_logprobs=not guessed, **options)
  assert result.texts is not None and result.lengths is not None
  each = len(result.texts) // len(prompts)
  width = result.sequences.shape[1] - int(result.lengths.max())
  for b, text in enumerate(result.texts):
    n = int(result.lengths[b])
    row = {
      "prompt": prompts[b // each],
      "text": text,
      "tokens": result.sequences[b, width : width + n].tolist(),
    }
    if result.logprobs is not None:
      row["logprobs"] = [round(float(x), 6) for x in result.logprobs[b, :n]]
      row["logprob"] = round(float(result.logprobs[b, :n].sum()), 6)
    if result.sequences_scores is not None:
      row["score"] = round(float(result.sequences_scores[b]), 6)
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _chat(lm: engine.LanguageModel, options: dict[str, Any], args: argparse.Namespace) -> None:
  """Turns of a talk, until the end of input; /reset forgets what was said."""
  turn, _, answer = args.chat_format.partition("{message}")
  if not turn or not answer:
    raise UserError("--chat_format has no {message} with something before and behind it")
  stop = "\n" + turn.strip()
  stops = [*options.get("stop_strings", []), stop]
  room = options.get("max_new_tokens", 128)
  options = {**options, "stop_strings": stops, "max_new_tokens": room}
  ask = _asker(sys.stdin.isatty())
  past: list[str] = []
  number = 0
  while (message := ask()) is not None:
    if message.strip() == "/reset":
      past = []
      continue
    if not message.strip():
      continue
    past.append(turn + message + answer)
    while len(past) > 1 and not _fits(lm, past, room):
      past = past[2:]  # a question and its answer
    said, shown = "", 0
    for piece in lm.stream("".join(past), seed=args.seed + number, **options):
      said += piece
      # What may become the next turn's beginning is not shown before it is known not to.
      safe = max(shown, len(said) - _held(said, stop))
      print(said[shown:safe], end="", flush=True)
      shown = safe
    said = said.partition(stop)[0]
    print(said[shown:], flush=True)
    past.append(said + "\n")
    number += 1


def _held(text: str, stop: str) -> int:
  """How much of the end of `text` may be the beginning of `stop`."""
  return next((n for n in range(len(stop), 0, -1) if text.endswith(stop[:n])), 0)


def _fits(lm: engine.LanguageModel, past: list[str], room: int) -> bool:
  return len(lm.tokenizer("".join(past)).input_ids) + room <= lm.config.max_position_embeddings


def _asker(terminal: bool) -> Callable[[], str | None]:
  def ask() -> str | None:
    if terminal:
      try:
        return input("> ")
      except EOFError:
        print()
        return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None

  return ask


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(
    prog="python -m gptneo_jax.generate",
    description=__doc__,
  )
  add = parser.add_argument
  add(
    "--checkpoint", required=True, metavar="DIR",
    help="checkpoint folder, such as a run's --workdir; a Hugging Face folder or hub id works too",
  )  # fmt: skip
  add("--step", metavar="N|best", help="which checkpoint, 'best' by eval/loss; default the newest")
  add("--prompt", action="append", metavar="TEXT", help="'-' reads standard input; may be repeated")
  add("--prompts", metavar="FILE", help="JSON lines: texts, or objects with \"prompt\"; '-' too")
  add("--chat", action="store_true", help="talk in the terminal; /reset forgets, Ctrl-D ends")
  add(
    "--chat_format", default="User: {message}\nAssistant:", metavar="TEXT",
    help="how a turn is put to the model; default 'User: {message}\\nAssistant:'",
  )  # fmt: skip
  add("--output", choices=("text", "jsonl", "stream"), default="text", help="default text")
  add("--batch_size", type=int, default=_BATCH, metavar="N", help="prompts at once; default 8")
  add("--do_sample", action=argparse.BooleanOptionalAction, help="draw tokens by their probability")
  add(
    "--ignore_generation_config", action="store_true",
    help="without the defaults that the model's generation_config.json or config.json sets",
  )  # fmt: skip
  add("--seed", type=cli.seed, default=0, help="of sampling; default 0")
  add("--negative_prompt", metavar="TEXT", help="of guidance_scale")
  add("--early_stopping", choices=("true", "false", "never"), help="of beam search")
  add("--assistant", metavar="DIR", help="a smaller model of the same vocabulary, which guesses")
  types = ("float32", "bfloat16", "float16")
  add("--dtype", choices=types, help="of weights and computation; default as stored")
  add("--quantise", choices=("int8", "w8a8", "int4"), help="weights of 8 or 4 bits")
  for name, text in _INTEGERS.items():
    add(f"--{name}", type=int, metavar="N", help=text)
  for name, text in _NUMBERS.items():
    add(f"--{name}", type=float, help=text)
  for name, (kind, text) in _SAMPLING.items():
    add(f"--{name}", type=kind, help=text)
  for name, (kind, text) in _LISTS.items():
    add(f"--{name}", type=kind, nargs="+", help=text)
  for name, text in _JSON.items():
    add(f"--{name}", metavar="JSON", help=text)
  return parser


if __name__ == "__main__":
  cli.guarded(main)
