"""The logits processors and sampling filters of a call, in transformers' order.

A pipeline has two parts: the processors, hashable, which the compiled function depends on; and
their values, such as a temperature, which may differ from call to call without compiling again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gptneo_jax.errors import UserError
from gptneo_jax.generation.sampling import processors
from gptneo_jax.generation.sampling.options import GenerationOptions
from gptneo_jax.generation.sampling.processors import History


class Processor(NamedTuple):
  """One step of a pipeline: function(history, scores_BxV, *values, *settings) gives new scores.

  name: that of its values. settings: arguments that are compiled in.
  """

  name: str
  function: Callable[..., jax.Array]
  settings: tuple = ()


class LogitsPipeline(NamedTuple):
  processors: tuple[Processor, ...]
  values: dict[str, tuple]  # arguments by the name of the processor


def make_pipeline(
  options: GenerationOptions, *, vocab_size: int, eos: Sequence[int], prompt_width: int,
  max_length: int,
) -> LogitsPipeline:  # fmt: skip
  """The pipeline of a call. Raises UserError for an id that the model does not have.

  eos: the ids that end a text. prompt_width: columns of the prompts, padding included. max_length:
  columns of prompt and new tokens at most.
  """
  check = functools.partial(_check_ids, vocab_size=vocab_size)
  eos_E = np.asarray(list(eos) or [-1], np.int32)
  check("eos_token_id", [i for i in eos if i != -1])
  steps: list[Processor] = []
  values: dict[str, tuple] = {}

  def add(
    function: Callable[..., jax.Array], *arguments: Any, settings: tuple = (), name: str = ""
  ) -> None:
    name = name or function.__name__
    steps.append(Processor(name, function, settings))
    values[name] = arguments

  o, p, f32 = options, processors, np.float32
  if o.guidance_scale is not None and o.guidance_scale != 1:
    add(p.guidance, f32(o.guidance_scale))
  if o.sequence_bias is not None:
    add(p.sequence_bias, _bias_groups("sequence_bias", _bias_pairs(o.sequence_bias), vocab_size))
  if o.repetition_penalty != 1.0:
    add(p.repetition_penalty, f32(o.repetition_penalty))
  if o.presence_penalty or o.frequency_penalty:
    add(p.count_penalties, f32(o.presence_penalty), f32(o.frequency_penalty))
  if o.no_repeat_ngram_size:
    add(p.no_repeat_ngram, np.int32(min(o.no_repeat_ngram_size, max_length)))
  if o.bad_words_ids is not None:
    words = [(tuple(word), -np.inf) for word in o.bad_words_ids if tuple(word) not in
             {(int(i),) for i in eos}]  # fmt: skip
    add(p.sequence_bias, _bias_groups("bad_words_ids", words, vocab_size), name="bad_words")
  if o.min_length:
    add(p.min_length, np.int32(o.min_length), eos_E)
  if o.min_new_tokens:
    add(p.min_new_tokens, np.int32(o.min_new_tokens), eos_E)
  if o.forced_bos_token_id is not None and prompt_width == 1:
    add(p.forced_bos, check("forced_bos_token_id", o.forced_bos_token_id))
  if o.forced_eos_token_id is not None:
    add(p.forced_eos, np.int32(max_length), check("forced_eos_token_id", o.forced_eos_token_id))
  if o.remove_invalid_values:
    add(p.remove_invalid_values)
  if o.exponential_decay_length_penalty is not None:
    start, factor = o.exponential_decay_length_penalty
    add(p.exponential_decay_length_penalty, np.int32(start), f32(factor), eos_E)
  if o.suppress_tokens is not None:
    add(p.suppress_tokens, check("suppress_tokens", o.suppress_tokens))
  if o.begin_suppress_tokens is not None:
    late = prompt_width == 1 and o.forced_bos_token_id is not None
    ids = check("begin_suppress_tokens", o.begin_suppress_tokens)
    add(p.begin_suppress_tokens, ids, np.int32(late))
  steps += [Processor("user", function) for function in o.logits_processor]
  if o.do_sample:
    min_keep = len(eos_E) + 1 if o.num_beams > 1 else 1
    if o.temperature != 1.0:
      add(p.temperature, f32(o.temperature))
    if o.top_h is not None:
      add(p.top_h, f32(o.top_h))
    if o.top_k:
      add(p.top_k, np.int32(min(o.top_k, vocab_size)), settings=(min_keep,))
    if o.top_p < 1.0:
      add(p.top_p, f32(o.top_p), settings=(min_keep,))
    if o.min_p is not None:
      add(p.min_p, f32(o.min_p), settings=(min_keep,))
    if o.typical_p < 1.0:
      add(p.typical_p, f32(o.typical_p), settings=(min_keep,))
    if o.epsilon_cutoff:
      add(p.epsilon_cutoff, f32(o.epsilon_cutoff), settings=(min_keep,))
    if o.eta_cutoff:
      add(p.eta_cutoff, f32(o.eta_cutoff), settings=(min_keep,))
  if o.renormalize_logits:
    add(p.renormalize)
  return LogitsPipeline(tuple(steps), values)


def common_form(pipeline: LogitsPipeline, vocab_size: int) -> LogitsPipeline:
  """A pipeline of the same effect with the processors of one of few forms, if one has them all.

  The others of the form get values that change nothing. So requests with different options, in
  whatever combination, share a compiled function. A pipeline with rarer processors stays as it is.
  """
  values = {name: _padded(name, given) for name, given in pipeline.values.items()}
  for form in _FORMS:
    neutral = _neutral_values(form, vocab_size)
    same_shapes = all(_shapes(values[name]) == _shapes(neutral.get(name)) for name in values)
    if set(pipeline.processors) <= set(form) and same_shapes:
      return LogitsPipeline(form, neutral | values)
  return pipeline


def common_forms(vocab_size: int) -> list[tuple[LogitsPipeline, bool]]:
  """The forms of `common_form`, with values that change nothing, and whether tokens are drawn."""
  return [
    (LogitsPipeline(form, _neutral_values(form, vocab_size)), sample)
    for form in _FORMS
    for sample in (False, True)
    if sample or form is not _FILTERS  # which are of sampling
  ]


def process_logits(
  processors: Sequence[Processor],
  values: dict[str, tuple],
  history: History,
  logits_BxV: jax.Array,
) -> jax.Array:
  """The scores that a token is chosen by, float32 B x V: the logits after all processors."""
  scores_BxV = logits_BxV
  for name, function, settings in processors:
    scores_BxV = function(history, scores_BxV, *values.get(name, ()), *settings)
  return scores_BxV


def sample_token(keys_B: jax.Array, scores_BxV: jax.Array, sample: bool) -> jax.Array:
  """The next ids, int32 B: drawn from the softmax of the scores by a key for each row, or the best.

  sample: whether to draw.
  """
  if sample:
    return jax.vmap(jax.random.categorical)(keys_B, scores_BxV).astype(np.int32)
  return scores_BxV.argmax(-1).astype(np.int32)


# --- the few forms --------------------------------------------------------------------------------

_BIASES, _ENDS = 300, 8  # biased ids and ends of text that a form has room for
_FILTERS = (
  Processor("temperature", processors.temperature),
  Processor("top_k", processors.top_k, (1,)),
  Processor("top_p", processors.top_p, (1,)),
)
_FORMS: tuple[tuple[Processor, ...], ...] = (
  (),
  _FILTERS,
  (
    Processor("sequence_bias", processors.sequence_bias),
    Processor("repetition_penalty", processors.repetition_penalty),
    Processor("count_penalties", processors.count_penalties),
    Processor("no_repeat_ngram", processors.no_repeat_ngram),
    Processor("min_new_tokens", processors.min_new_tokens),
    *_FILTERS,
    Processor("min_p", processors.min_p, (1,)),
  ),
)  # each in the order of make_pipeline


def _neutral_values(form: Sequence[Processor], vocab_size: int) -> dict[str, tuple]:
  """Values by which the processors change nothing."""
  f32, i32 = np.float32, np.int32
  no_bias = (np.zeros((_BIASES, 0), i32), np.zeros(_BIASES, i32), np.zeros(_BIASES, f32))
  neutral = {
    "sequence_bias": ([no_bias],),
    "repetition_penalty": (f32(1),),
    "count_penalties": (f32(0), f32(0)),
    "no_repeat_ngram": (i32(0),),
    "min_new_tokens": (i32(0), np.full(_ENDS, -1, i32)),
    "temperature": (f32(1),),
    "top_k": (i32(vocab_size),),
    "top_p": (f32(1),),
    "min_p": (f32(0),),
  }
  return {processor.name: neutral[processor.name] for processor in form}


def _padded(name: str, values: tuple) -> tuple:
  """Values with lists as long as the forms have them, if they are not longer."""
  if name == "min_new_tokens" and len(values[1]) < _ENDS:
    return (values[0], np.pad(values[1], (0, _ENDS - len(values[1])), constant_values=-1))
  if name == "sequence_bias" and len(values[0]) == 1 and len(values[0][0][1]) < _BIASES:
    prefixes_CxN, last_C, bias_C = values[0][0]
    more = (0, _BIASES - len(last_C))
    return ([(np.pad(prefixes_CxN, (more, (0, 0))), np.pad(last_C, more), np.pad(bias_C, more))],)
  return values


def _shapes(values: Any) -> Any:
  return jax.tree.map(np.shape, values)


def _bias_pairs(bias: Any) -> list[tuple[tuple[int, ...], float]]:
  pairs = bias.items() if isinstance(bias, dict) else bias
  return [(tuple(ids), float(value)) for ids, value in pairs]


def _bias_groups(
  name: str, pairs: list[tuple[tuple[int, ...], float]], vocab_size: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  groups: dict[int, list] = {}
  for ids, value in pairs:
    if not ids:
      raise UserError(f"generate: {name} holds an empty sequence of ids")
    _check_ids(name, ids, vocab_size)
    groups.setdefault(len(ids) - 1, []).append((ids, value))
  return [
    (
      np.asarray([ids[:-1] for ids, _ in group], np.int32).reshape(len(group), length),
      np.asarray([ids[-1] for ids, _ in group], np.int32),
      np.asarray([value for _, value in group], np.float32),
    )
    for length, group in sorted(groups.items())
  ]


def _check_ids(name: str, ids: Any, vocab_size: int) -> np.ndarray:
  try:
    array = np.atleast_1d(np.asarray(ids))
  except ValueError:
    array = np.asarray([None])
  if array.size and array.dtype.kind not in "iu":
    raise UserError(f"generate: {name} {ids!r} does not hold whole numbers only")
  for i in array.flat:
    if not 0 <= i < vocab_size:
      raise UserError(f"generate: {name} holds {i}; the model has ids 0 to {vocab_size - 1}")
  return array.astype(np.int32)
