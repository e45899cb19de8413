"""Options of generation, with the names, meaning and defaults of transformers' GenerationConfig.

`presence_penalty` and `frequency_penalty`, which transformers lacks, are those of OpenAI's API.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.generation.sampling.processors import History

# A processor of the user's own, jittable: scores, float32 B x V, before the sampling filters.
LogitsProcessor = Callable[[History, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
  """How to continue a prompt. Raises UserError for options out of range, or that contradict others.

  max_length, min_length and forced_eos_token_id count the columns of `sequences`: the longest
  prompt, and so the padding of shorter ones, included. Without max_new_tokens and max_length, 20
  new tokens.
  """

  # Length
  max_new_tokens: int | None = None
  max_length: int | None = None
  min_new_tokens: int | None = None
  min_length: int = 0
  eos_token_id: int | Sequence[int] | None = None  # None: the tokenizer's; -1 or (): none
  pad_token_id: int | None = None  # None: the first end of text
  stop_strings: str | Sequence[str] | None = None
  # Search
  do_sample: bool = False
  num_beams: int = 1
  num_return_sequences: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  # Processors
  guidance_scale: float | None = None
  negative_prompt: Any = None  # text or ids, one for all prompts or one each
  sequence_bias: dict[tuple[int, ...], float] | Sequence | None = None
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  no_repeat_ngram_size: int = 0
  bad_words_ids: Sequence[Sequence[int]] | None = None
  forced_bos_token_id: int | None = None
  forced_eos_token_id: int | Sequence[int] | None = None
  remove_invalid_values: bool = False
  exponential_decay_length_penalty: tuple[int, float] | None = None
  suppress_tokens: Sequence[int] | None = None
  begin_suppress_tokens: Sequence[int] | None = None
  logits_processor: Sequence[LogitsProcessor] = ()
  renormalize_logits: bool = False
  # Sampling filters
  temperature: float = 1.0
  top_h: float | None = None
  top_k: int = 50
  top_p: float = 1.0
  min_p: float | None = None
  typical_p: float = 1.0
  epsilon_cutoff: float = 0.0
  eta_cutoff: float = 0.0
  # Speculation
  assistant_model: Any = None  # a LanguageModel with the same vocabulary
  num_assistant_tokens: int = 5
  prompt_lookup_num_tokens: int | None = None
  max_matching_ngram_size: int = 2
  # What is returned beside the tokens
  output_scores: bool = False
  output_logits: bool = False
  output_logprobs: bool = False
  # Names of the options above that come from the model's files, not from the caller
  inherited: frozenset[str] = frozenset()

  @classmethod
  def from_dict(
    cls, options: dict[str, Any], defaults: Mapping[str, Any] | None = None
  ) -> GenerationOptions:
    """The options of a call, with the model's defaults for those that it does not give.

    Raises UserError for an option that does not exist, with the nearest name.
    """
    names = [field.name for field in dataclasses.fields(cls) if field.name != "inherited"]
    for name, instead in _INSTEAD.items():
      if name in options:
        raise UserError(f"generate: {name} is not supported; {instead}")
    for name in options:
      if name not in names:
        hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
        raise UserError(f"generate: {name} is not supported{hint}")
    # None is the default, as in transformers.
    given = {name: value for name, value in options.items() if value is not None}
    own = {
      name: value for name, value in cls.that_apply(defaults or {}, given).items() if name in names
    }
    try:
      return cls(**own, **given, inherited=frozenset(own))
    except UserError as error:
      raise blaming(error, own) from None

  @staticmethod
  def that_apply(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a model that apply to a call with the given options.

    As in transformers, defaults for sampling are ignored without sampling, and those for beams
    without beams. Unlike there, a length that the caller gives replaces the default under either of
    its names.
    """
    own = {name: value for name, value in defaults.items() if name not in given}
    for new, total in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
      if new in given or total in given:
        own.pop(new, None), own.pop(total, None)
      elif new in own:
        own.pop(total, None)
    merged = {**own, **given}
    sampled, beams = merged.get("do_sample", False), merged.get("num_beams", 1) != 1
    ignored = {
      *(() if sampled else _SAMPLING_ONLY), *(() if beams else _BEAMS_ONLY),
      *(() if sampled or beams else ["num_return_sequences"]),
    }  # fmt: skip
    return {name: value for name, value in own.items() if name not in ignored}

  def __post_init__(self):
    _check_types(self)
    for check in (_check_ranges, _check_contradictions):
      check(self)

  @property
  def speculates(self) -> bool:
    return self.assistant_model is not None or self.prompt_lookup_num_tokens is not None

  @property
  def stops(self) -> tuple[str, ...]:
    """The stop strings."""
    if self.stop_strings is None:
      return ()
    return (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)

  def new_tokens(self, prompt_width: int, limit: int, padding: int = 0) -> int:
    """The new tokens at most, for the longest prompt. Raises UserError.

    limit: positions of the model. padding: columns before the longest prompt, included in lengths.
    """
    columns = prompt_width + padding
    room = limit - prompt_width
    if self.max_length is not None:
      if self.max_length <= columns:
        raise UserError(
          f"generate: max_length is {self.max_length}, and the prompt alone has {columns}"
          " tokens; raise it, or give max_new_tokens"
        )
      wanted = self.max_length - columns
    elif self.max_new_tokens is not None:
      wanted = self.max_new_tokens
    else:
      wanted = max(1, min(20, room))
    if {"max_new_tokens", "max_length"} & self.inherited:
      wanted = max(1, min(wanted, room))
    if prompt_width + wanted > limit:
      total = prompt_width + wanted
      raise UserError(
        f"generate: a prompt of {prompt_width} tokens and {wanted} new ones make {total},"
        f" {total - limit} more than the model's {limit} positions"
      )
    if "min_new_tokens" not in self.inherited and (self.min_new_tokens or 0) > wanted:
      raise UserError(
        f"generate: min_new_tokens is {self.min_new_tokens}, and at most {wanted} are made"
      )
    if "min_length" not in self.inherited and self.min_length > columns + wanted:
      raise UserError(
        f"generate: min_length is {self.min_length}, and a prompt of {columns} tokens and at most"
        f" {wanted} new ones make {columns + wanted}"
      )
    return wanted


def blaming(error: UserError, own: Iterable[str]) -> UserError:
  """The error, saying which of the options it names come from the model's files."""
  named = [name for name in own if name in str(error)]
  if not named:
    return error
  return UserError(
    f"{error} ({', '.join(named)}: of the model's own defaults; lm.generation_config = {{}} or"
    " --ignore_generation_config leaves them out)"
  )


_INSTEAD = {  # arguments of transformers' generate that are no options here, and what to do
  "token_type_ids": "tokenizer(texts, return_token_type_ids=False) leaves them out",
  "generation_config": "give its options by name, or set lm.generation_config",
}
_SAMPLING_ONLY = (
  "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
_BEAMS_ONLY = ("length_penalty", "early_stopping")
_BOOLS = (
  "do_sample", "remove_invalid_values", "renormalize_logits", "output_scores", "output_logits",
  "output_logprobs",
)  # fmt: skip
_INTEGERS = {  # name: minimum
  "max_new_tokens": 1,
  "max_length": 1,
  "min_new_tokens": 0,
  "min_length": 0,
  "num_beams": 1,
  "num_return_sequences": 1,
  "no_repeat_ngram_size": 0,
  "top_k": 0,
  "pad_token_id": 0,
  "forced_bos_token_id": 0,
  "num_assistant_tokens": 1,
  "prompt_lookup_num_tokens": 1,
  "max_matching_ngram_size": 1,
}
_RANGES = {  # name: (rule in words, rule)
  "temperature": ("above 0", lambda x: x > 0),
  "repetition_penalty": ("above 0", lambda x: x > 0),
  "top_p": ("between 0 and 1", lambda x: 0 <= x <= 1),
  "top_h": ("above 0 and at most 1", lambda x: 0 < x <= 1),
  "min_p": ("between 0 and 1", lambda x: 0 <= x <= 1),
  "typical_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
  "epsilon_cutoff": ("at least 0 and below 1", lambda x: 0 <= x < 1),
  "eta_cutoff": ("at least 0 and below 1", lambda x: 0 <= x < 1),
  "presence_penalty": ("a finite number", math.isfinite),
  "frequency_penalty": ("a finite number", math.isfinite),
  "length_penalty": ("a finite number", math.isfinite),
  "guidance_scale": ("a finite number", math.isfinite),
}


def _is_integer(x: Any) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
  return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _are(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """A rule for lists, tuples, sets and arrays whose elements all obey the rule."""
  return lambda x: isinstance(x, Sequence | np.ndarray | set) and all(map(rule, x))


_are_ids = _are(_is_integer)


def _is_bias(x: Any) -> bool:
  def pairs(pair: Any) -> bool:
    is_pair = isinstance(pair, Sequence) and len(pair) == 2
    return is_pair and _are_ids(pair[0]) and _is_number(pair[1])

  return _are(pairs)(list(x.items()) if isinstance(x, dict) else x)


_SHAPES = {  # name: (what it is in words, rule)
  "eos_token_id": ("an id or a list of ids", lambda x: _is_integer(x) or _are_ids(x)),
  "forced_eos_token_id": ("an id or a list of ids", lambda x: _is_integer(x) or _are_ids(x)),
  "suppress_tokens": ("a list of ids", _are_ids),
  "begin_suppress_tokens": ("a list of ids", _are_ids),
  "bad_words_ids": ("a list of lists of ids, as [[1, 2], [3]]", _are(_are_ids)),
  "sequence_bias": ("a list of pairs of ids and a number, as [[[1, 2], -5.0]]", _is_bias),
  "exponential_decay_length_penalty": (
    "a pair, the new tokens that it begins after and a factor, as [10, 1.05]",
    lambda x: _are(_is_number)(x) and len(x) == 2 and _is_integer(x[0]) and x[1] > 0,
  ),
  "stop_strings": (
    "a text or a list of texts",
    lambda x: isinstance(x, str) or _are(lambda text: isinstance(text, str))(x),
  ),
}
_DEFAULT = {field.name: field.default for field in dataclasses.fields(GenerationOptions)}


def _check_types(options: GenerationOptions) -> None:
  for name in _BOOLS:
    if not isinstance(getattr(options, name), bool):
      raise UserError(f"generate: {name} is {getattr(options, name)!r}; it is True or False")
  for name, least in _INTEGERS.items():
    value = getattr(options, name)
    if value is not None and not (_is_integer(value) and int(value) >= least):
      raise UserError(f"generate: {name} is {value!r}; it is a whole number, at least {least}")
  for name in _RANGES:
    value = getattr(options, name)
    if value is not None and not _is_number(value):
      raise UserError(f"generate: {name} is {value!r}; it is a number")
  for name, (words, rule) in _SHAPES.items():
    value = getattr(options, name)
    if value is not None and not rule(value):
      raise UserError(f"generate: {name} is {value!r}; it is {words}")
  for function in options.logits_processor:
    if not callable(function):
      raise UserError(
        f"generate: logits_processor holds {function!r}, which is not a function of (history,"
        " scores)"
      )
  if options.early_stopping not in (True, False, "never"):
    raise UserError(
      f"generate: early_stopping is {options.early_stopping!r}; it is True, False or 'never'"
    )


def _check_ranges(options: GenerationOptions) -> None:
  for name, (words, rule) in _RANGES.items():
    value = getattr(options, name)
    if value is not None and not rule(value):
      hint = "; the likeliest token each time is do_sample=False" if name == "temperature" else ""
      raise UserError(f"generate: {name} is {value}; it must be {words}{hint}")
  for stop in options.stops:
    if not stop:
      raise UserError("generate: a stop string is empty; it would never match")
    if any("\ud800" <= character <= "\udfff" for character in stop):
      raise UserError(f"generate: the stop string {stop!a} is not valid text")


def _check_contradictions(options: GenerationOptions) -> None:
  given = lambda name: getattr(options, name) != _DEFAULT[name]

  def conflict(text: str):
    raise UserError(f"generate: {text}")

  if options.max_new_tokens is not None and options.max_length is not None:
    conflict("max_new_tokens and max_length are both given; give one")
  if options.min_new_tokens is not None and options.min_length:
    conflict("min_new_tokens and min_length are both given; give one")
  too_long = options.max_length is not None and options.min_length > options.max_length
  if too_long and "min_length" not in options.inherited:
    conflict(f"min_length {options.min_length} is above max_length {options.max_length}")
  for name in _SAMPLING_ONLY:
    if given(name) and not options.do_sample:
      conflict(f"{name} is {getattr(options, name)}, and nothing is sampled; set do_sample=True")
  for name in _BEAMS_ONLY:
    if given(name) and options.num_beams == 1:
      conflict(f"{name} is {getattr(options, name)}, and there are no beams; set num_beams")
  returned = options.num_return_sequences
  if returned > 1 and options.num_beams == 1 and not options.do_sample:
    conflict(f"num_return_sequences is {returned}, and greedy search has one; sample, or num_beams")
  if options.num_beams > 1 and returned > options.num_beams:
    conflict(f"num_return_sequences is {returned}, more than num_beams {options.num_beams}")
  if options.negative_prompt is not None and options.guidance_scale in (None, 1.0):
    conflict("negative_prompt is given without a guidance_scale other than 1")
  suppressed = set(options.suppress_tokens or ())
  for name in ("forced_bos_token_id", "forced_eos_token_id"):
    forced = getattr(options, name)
    forced = set(() if forced is None else [forced] if isinstance(forced, int) else forced)
    if forced and forced <= suppressed:
      conflict(f"{name} {sorted(forced)} is in suppress_tokens too")
  if options.assistant_model is not None and options.prompt_lookup_num_tokens is not None:
    conflict("assistant_model and prompt_lookup_num_tokens are both given; give one")
  guided = options.guidance_scale not in (None, 1.0)
  for name, on in (("num_beams", options.num_beams > 1), ("guidance_scale", guided)):
    if options.speculates and on:
      conflict(f"speculation does not go with {name}")
  if guided and options.num_beams > 1:
    conflict("guidance_scale does not go with num_beams")
  for name in ("output_scores", "output_logits"):
    if getattr(options, name) and options.num_beams > 1:
      conflict(f"{name} is of one token after another, and beams are sorted anew with each; their"
               " tokens' log-probabilities are output_logprobs")  # fmt: skip
  if options.speculates and (
    options.output_scores or options.output_logits or options.output_logprobs
  ):
    conflict("speculation does not return scores, logits or log-probabilities")
