"""The processors that a call asks for, in transformers' order, as one jittable function.

A plan is in two parts: what the compiled function depends on (`Plan.stages`, hashable), and values
that may differ from call to call without compiling again (`Plan.values`).
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


class Stage(NamedTuple):
  """One processor: its name, and the settings that are compiled in."""

  name: str
  settings: tuple = ()
  function: Callable | None = None  # of a user's own processor


class Plan(NamedTuple):
  stages: tuple[Stage, ...]
  values: dict[str, Any]  # by name of the stage, a tuple of arguments

  @property
  def guided(self) -> bool:
    return any(stage.name == "guidance" for stage in self.stages)


# Those that look at the tokens so far; the others look at the scores alone.
_WITH_HISTORY = {
  "sequence_bias", "repetition_penalty", "no_repeat_ngram", "bad_words", "min_length",
  "min_new_tokens", "forced_bos", "forced_eos", "exponential_decay_length_penalty",
  "begin_suppress_tokens",
}  # fmt: skip


def make_plan(
  options: GenerationOptions, *, vocab_size: int, eos: Sequence[int], prompt_width: int,
  max_length: int,
) -> Plan:  # fmt: skip
  """The stages for a call. Raises UserError for an id that the model has not.

  eos: the ids that end a text. prompt_width: columns of the prompts. max_length: columns at most.
  """
  check = functools.partial(_check_ids, vocab_size=vocab_size)
  eos_E = np.asarray(list(eos) or [-1], np.int32)
  check("eos_token_id", [i for i in eos if i != -1])
  stages: list[Stage] = []
  values: dict[str, Any] = {}

  def add(name: str, *arguments: Any, settings: tuple = ()) -> None:
    stages.append(Stage(name, settings))
    values[name] = tuple(arguments)

  o, f32 = options, np.float32
  if o.guidance_scale is not None and o.guidance_scale != 1:
    add("guidance", f32(o.guidance_scale))
  if o.sequence_bias is not None:
    add("sequence_bias", _bias_groups("sequence_bias", _bias_pairs(o.sequence_bias), vocab_size))
  if o.repetition_penalty != 1.0:
    add("repetition_penalty", f32(o.repetition_penalty))
  if o.no_repeat_ngram_size:
    add("no_repeat_ngram", settings=(o.no_repeat_ngram_size,))
  if o.bad_words_ids is not None:
    words = [(tuple(word), -np.inf) for word in o.bad_words_ids if tuple(word) not in
             {(int(i),) for i in eos}]  # fmt: skip
    add("bad_words", _bias_groups("bad_words_ids", words, vocab_size))
  if o.min_length:
    add("min_length", np.int32(o.min_length), eos_E)
  if o.min_new_tokens:
    add("min_new_tokens", np.int32(o.min_new_tokens), eos_E)
  if o.forced_bos_token_id is not None and prompt_width == 1:
    add("forced_bos", check("forced_bos_token_id", o.forced_bos_token_id))
  if o.forced_eos_token_id is not None:
    add("forced_eos", np.int32(max_length), check("forced_eos_token_id", o.forced_eos_token_id))
  if o.remove_invalid_values:
    add("remove_invalid_values")
  if o.exponential_decay_length_penalty is not None:
    start, factor = o.exponential_decay_length_penalty
    add("exponential_decay_length_penalty", np.int32(start), f32(factor), eos_E)
  if o.suppress_tokens is not None:
    add("suppress_tokens", check("suppress_tokens", o.suppress_tokens))
  if o.begin_suppress_tokens is not None:
    late = prompt_width == 1 and o.forced_bos_token_id is not None
    ids = check("begin_suppress_tokens", o.begin_suppress_tokens)
    add("begin_suppress_tokens", ids, np.int32(late))
  stages += [Stage("user", (), function) for function in o.logits_processor]
  if o.do_sample:
    min_keep = len(eos_E) + 1 if o.num_beams > 1 else 1
    if o.temperature != 1.0:
      add("temperature", f32(o.temperature))
    if o.top_h is not None:
      add("top_h", f32(o.top_h))
    if o.top_k:
      add("top_k", settings=(o.top_k, min_keep))
    if o.top_p < 1.0:
      add("top_p", f32(o.top_p), settings=(min_keep,))
    if o.min_p is not None:
      add("min_p", f32(o.min_p), settings=(min_keep,))
    if o.typical_p < 1.0:
      add("typical_p", f32(o.typical_p), settings=(min_keep,))
    for name in ("epsilon_cutoff", "eta_cutoff"):
      if getattr(o, name):
        add(name, f32(getattr(o, name)), settings=(min_keep,))
  if o.renormalize_logits:
    add("renormalize")
  return Plan(tuple(stages), values)


def apply(
  stages: Sequence[Stage],
  values: dict[str, Any],
  history: History,
  scores_BxV: jax.Array,
  unguided_BxV: jax.Array | None = None,
) -> jax.Array:
  """Scores after all stages, float32 B x V.

  unguided_BxV: logits behind the negative prompt, for a plan that is guided.
  """
  for stage in stages:
    arguments = (*values.get(stage.name, ()), *stage.settings)
    if stage.function is not None:
      scores_BxV = stage.function(history, scores_BxV)
    elif stage.name == "guidance":
      assert unguided_BxV is not None
      scores_BxV = processors.guidance(scores_BxV, unguided_BxV, *arguments)
    else:
      function = getattr(processors, "sequence_bias" if stage.name == "bad_words" else stage.name)
      before = (history,) if stage.name in _WITH_HISTORY else ()
      scores_BxV = function(*before, scores_BxV, *arguments)
  return scores_BxV


def choose(keys_B: jax.Array, scores_BxV: jax.Array, sample: bool) -> jax.Array:
  """The next ids, int32 B: drawn by their probabilities, each row with its own key, or the best."""
  if sample:
    return jax.vmap(jax.random.categorical)(keys_B, scores_BxV).astype(np.int32)
  return scores_BxV.argmax(-1).astype(np.int32)


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
    raise UserError(f"generate: {name} {ids!r} is not made of whole numbers")
  for i in array.flat:
    if not 0 <= i < vocab_size:
      raise UserError(f"generate: {name} holds {i}; the model has ids 0 to {vocab_size - 1}")
  return array.astype(np.int32)
