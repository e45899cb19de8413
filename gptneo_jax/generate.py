"""Continues texts with a trained model.

  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog"
  python -m gptneo_jax.generate --checkpoint runs/tiny --prompt "The dog" --temperature 0.8 --seed 1
  python -m gptneo_jax.generate --checkpoint DIR --prompts FILE.jsonl --output jsonl
  python -m gptneo_jax.generate --checkpoint DIR --prompt - --output stream < FILE.txt
  python -m gptneo_jax.generate --checkpoint DIR --chat

Prompts come from the command line, from standard input ('-'), or from a file of JSON lines: texts,
or objects with "prompt". A model that was fine-tuned on instructions gets them in the template that
it learned, and answers; objects may then be records or have "messages". Generation options have
transformers' names and defaults; those that say how to sample turn sampling on.
"""

from __future__ import annotations

import argparse
import codecs
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gptneo_jax import cli, engine
from gptneo_jax.config import FLOAT_TYPES
from gptneo_jax.data import load_tokenizer
from gptneo_jax.errors import UserError
from gptneo_jax.examples import TaskSpec, instruction
from gptneo_jax.generation import api, chat
from gptneo_jax.generation.api import Generation

_BATCH = 8
_ANSWER = 128  # new tokens at most of a fine-tuned model's answer, which ends itself
_INTEGERS = {
  "max_new_tokens": "new tokens at most; default 20; answers of fine-tuned models 128",
  "max_length": "tokens at most, prompt included",
  "min_new_tokens": "no end of text before N new tokens",
  "min_length": "no end of text before N tokens, prompt included",
  "num_beams": "beam search with N beams",
  "num_return_sequences": "continuations of each prompt",
  "no_repeat_ngram_size": "no n-gram of N tokens twice",
  "pad_token_id": "id after an end of text",
  "forced_bos_token_id": "first new token after a prompt of one token",
  "forced_eos_token_id": "last token at max_length",
  "prompt_lookup_num_tokens": "speculation: propose N tokens that followed an earlier match",
  "num_assistant_tokens": "speculation: propose N tokens of the assistant; default 5",
  "max_matching_ngram_size": "speculation: tokens that match at most; default 2",
}
_NUMBERS = {
  "repetition_penalty": "above 1: tokens that occur in the text become less likely",
  "presence_penalty": "above 0: tokens that were generated become less likely",
  "frequency_penalty": "above 0: the less likely, the more often they were generated",
  "length_penalty": "beams: above 0 favours longer texts",
  "guidance_scale": "above 1: away from the negative prompt",
}
_SAMPLING = {
  "temperature": (float, "sampling: below 1 sharper, above 1 flatter"),
  "top_k": (int, "sampling: only the K likeliest; default 50, 0: all"),
  "top_p": (float, "sampling: only the likeliest that make up this probability"),
  "top_h": (float, "sampling: only the likeliest up to this share of the entropy"),
  "min_p": (float, "sampling: only those at least this share as likely as the likeliest"),
  "typical_p": (float, "sampling: only those about as surprising as expected, of this probability"),
  "epsilon_cutoff": (float, "sampling: only those at least this likely"),
  "eta_cutoff": (float, "sampling: as epsilon_cutoff, lower where the entropy is high"),
}
_LISTS = {
  "eos_token_id": (int, "ids that end a text; default the tokenizer's, -1: none"),
  "stop_strings": (str, "texts that end a text"),
  "suppress_tokens": (int, "ids that are never chosen"),
  "begin_suppress_tokens": (int, "ids that are not chosen first"),
}
_JSON = {
  "bad_words_ids": "sequences of ids that are never generated, as [[1, 2], [3]]",
  "sequence_bias": "added to the scores of sequences of ids, as [[[1, 2], -5.0]]",
  "exponential_decay_length_penalty": "grows the score of the end of text, as [start, factor]",
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
  lm = engine.load(
    args.checkpoint,
    args.dtype,
    adapter=args.adapter,
    quantization=args.quantization,
    step=args.step,
  )
  if args.tokenizer:
    lm.tokenizer = load_tokenizer(args.tokenizer)
  if args.ignore_generation_config:
    lm.generation_config = {}
  if args.assistant:
    options["assistant_model"] = engine.load(args.assistant, args.dtype)
  task = lm.task if lm.has_template and not args.raw else None
  if args.chat:
    stored = task and not args.chat_format
    turn = chat.Stored(task) if stored else chat.Format.parse(args.chat_format or chat.FORMAT)
    chat.talk(lm, turn, options, args.seed)
    return
  requests = [_request(lm, task, prompt) for prompt in prompts]
  if task and not {"max_new_tokens", "max_length"} & {*options, *lm.generation_config}:
    longest = max(len(request.prompt) for request in requests)
    options["max_new_tokens"] = max(1, min(_ANSWER, lm.config.max_position_embeddings - longest))
  _check_lengths(lm, requests, options)
  if args.output == "stream":
    _stream(lm, requests, args.seed, options)
    return
  merged = {**lm.generation_config, **options}
  speculates = "assistant_model" in merged or "prompt_lookup_num_tokens" in merged
  for start in range(0, len(requests), args.batch_size):
    batch = requests[start : start + args.batch_size]
    logprobs = args.output == "jsonl" and not speculates
    result = lm.generate(
      [request.prompt for request in batch], seed=args.seed, output_logprobs=logprobs, **options
    )
    if args.output == "jsonl":
      _as_json(batch, result)
    else:
      _as_text(batch, result, start, len(requests))


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


class _Prompt(NamedTuple):
  where: str  # for messages
  given: Any  # a text, or an object of a file


class _Request(NamedTuple):
  """What the model is to continue: a text, or the ids that its template makes of a prompt.

  shown: what of it is printed before the new text.
  """

  where: str
  given: Any
  prompt: str | list[int]
  shown: str
  task: TaskSpec | None

  def answer(self, text: str) -> str:
    """What is printed of the new text."""
    return text if self.task is None else instruction.answer_of(text, self.task)


def _request(lm: engine.LanguageModel, task: TaskSpec | None, prompt: _Prompt) -> _Request:
  """Raises UserError with the prompt's line."""
  where, given = prompt
  text = given.get("prompt") if isinstance(given, dict) else given
  if task is None:
    if not isinstance(text, str):
      raise UserError(f'{where}: neither a text nor an object with the text "prompt"')
    return _Request(where, text, text, text, None)
  try:
    messages = given.get("messages") if isinstance(given, dict) else None
    return _Request(where, given, lm.prompt_ids(messages or given), "", task)
  except UserError as error:
    raise UserError(f"{where}: {error}") from None


def _prompts(args: argparse.Namespace) -> Iterator[_Prompt]:
  for text in args.prompt or []:
    yield _checked("--prompt", _read("-") if text == "-" else text)
  if not args.prompts:
    return
  # Lines end at line feeds alone: other line separators may occur inside JSON strings.
  for number, line in enumerate(_read(args.prompts).split("\n"), 1):
    if not line.strip():
      continue
    where = f"{args.prompts}:{number}"
    try:
      value = json.loads(line)
    except ValueError as error:
      raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, str | dict):
      raise UserError(f'{where}: neither a text nor an object with the text "prompt"')
    yield _checked(where, value)


def _checked(where: str, given: Any) -> _Prompt:
  text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    wrong = text[error.start]
    raise UserError(f"{where}: {wrong!a} is half a character, and no text") from None
  return _Prompt(where, given)


def _read(name: str) -> str:
  """The text of a file, or of standard input for '-'; UTF-8, whatever the terminal's encoding."""
  try:
    if name == "-" and sys.stdin.isatty():
      return sys.stdin.read()
    content = (
      sys.stdin.buffer.read() if name == "-" else pathlib.Path(name).expanduser().read_bytes()
    )
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf_16 else "utf-8-sig")
  except OSError as error:
    raise UserError(f"{name}: cannot be read: {error.strerror}") from None
  except UnicodeDecodeError as error:
    name = "standard input" if name == "-" else name
    line = error.object[: error.start].count(b"\n") + 1
    raise UserError(
      f"{name}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; convert it, as with"
      " iconv -f latin1 -t utf-8"
    ) from None


def _check_lengths(lm: engine.LanguageModel, requests: list[_Request], options: dict) -> None:
  """Raises UserError, with its line, for a prompt that is too long, before any is continued."""
  for request in requests:
    try:
      api.check(lm, request.prompt, options)
    except UserError as error:
      raise UserError(f"{request.where}: {str(error).removeprefix('generate: ')}") from None


def _stream(lm: engine.LanguageModel, requests: list[_Request], seed: int, options: dict) -> None:
  for number, request in enumerate(requests, 1):
    _print_separator(number, len(requests))
    print(request.shown, end="", flush=True)
    made, printed = "", 0
    for piece in lm.stream(request.prompt, seed=seed, **options):
      made += piece
      text = request.answer(made)
      print(text[printed:], end="", flush=True)
      printed = len(text)
    print(flush=True)


def _print_separator(number: int, count: int) -> None:
  """Prints a separator before each of several texts, which may have lines of their own."""
  if count > 1:
    print(f"--- {number} of {count} ---", flush=True)


def _as_text(requests: list[_Request], result: Generation, done: int, count: int) -> None:
  assert result.texts is not None  # without a tokenizer a prompt of text is refused
  each = len(result.texts) // len(requests)
  for b, text in enumerate(result.texts):
    _print_separator(done * each + b + 1, count * each)
    request = requests[b // each]
    print(request.shown + request.answer(text), flush=True)


def _as_json(requests: list[_Request], result: Generation) -> None:
  """One object a line: prompt, text, tokens, and their log-probabilities if they are known."""
  assert result.texts is not None and result.lengths is not None
  each = len(result.texts) // len(requests)
  width = result.sequences.shape[1] - int(result.lengths.max())
  for b, text in enumerate(result.texts):
    n = int(result.lengths[b])
    row = {
      "prompt": requests[b // each].given,
      "text": requests[b // each].answer(text),
      "tokens": result.sequences[b, width : width + n].tolist(),
    }
    if result.logprobs is not None:
      row["logprobs"] = [round(float(x), 6) for x in result.logprobs[b, :n]]
      row["logprob"] = round(float(result.logprobs[b, :n].sum()), 6)
    if result.sequences_scores is not None:
      row["score"] = round(float(result.sequences_scores[b]), 6)
    print(json.dumps(row, ensure_ascii=False, allow_nan=False), flush=True)


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
  add("--tokenizer", metavar="DIR_OR_ID", help="in place of the one in the checkpoint's folder")
  add("--adapter", metavar="DIR", help="LoRA adapter in PEFT's form, merged into the weights")
  add("--prompt", action="append", metavar="TEXT", help="'-' reads standard input; may be repeated")
  add("--prompts", metavar="FILE", help="JSON lines: texts, or objects with \"prompt\"; '-' too")
  add("--chat", action="store_true", help="chat in the terminal; /help lists commands")
  add(
    "--chat_format", metavar="TEXT",
    help="text of a turn, \\n for a new line; default what the model was fine-tuned with, or else"
    " 'User: {message}\\nAssistant:{answer}\\n'; for models whose turns end with the end of text"
    " '{message}<|endoftext|>{answer}<|endoftext|>'",
  )  # fmt: skip
  add(
    "--raw", action="store_true",
    help="continue texts as they are, without the template that the model was fine-tuned with",
  )  # fmt: skip
  add("--output", choices=("text", "jsonl", "stream"), default="text", help="default text")
  add("--batch_size", type=int, default=_BATCH, metavar="N", help="prompts at once; default 8")
  add("--do_sample", action=argparse.BooleanOptionalAction, help="draw tokens by their probability")
  add(
    "--ignore_generation_config", action="store_true",
    help="ignore the defaults in the model's generation_config.json or config.json",
  )  # fmt: skip
  add("--seed", type=cli.seed, default=0, help="random seed of sampling; default 0")
  add("--negative_prompt", metavar="TEXT", help="prompt that guidance_scale leads away from")
  add("--early_stopping", choices=("true", "false", "never"), help="of beam search")
  add("--assistant", metavar="DIR", help="a smaller model of the same vocabulary, for speculation")
  add("--dtype", choices=FLOAT_TYPES, help="of weights and computation; default as stored")
  add("--quantization", choices=("int8", "w8a8", "int4"), help="weights of 8 or 4 bits")
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
