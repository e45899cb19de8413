"""From prompts and options to a task for the device. What cannot be done is refused here."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from gptneo_jax import data
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.generation import decode, kv_cache, sampling, speculative
from gptneo_jax.generation.detokenization import token_bytes
from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.generation.sampling.options import blaming
from gptneo_jax.generation.stop_strings import StopTable, make_stop_table
from gptneo_jax.model.forward import integers, refuse_traced
from gptneo_jax.sharding import batch_ways


class Prompts(NamedTuple):
  """Prompts as ids without padding, and the width of `sequences` that they take up.

  width: columns of the prompts in `sequences`: of ids that came as B x T it is T, else the length
    of the longest. `max_length`, `min_length` and `forced_eos_token_id` count from it.
  given_BxT: the ids as they came, padding included, where it was all on the left.
  """

  rows: list[list[int]]
  width: int
  given_BxT: np.ndarray | None = None

  def repeated(self, times: int) -> Prompts:
    """Each prompt `times` over."""
    given_BxT = None if self.given_BxT is None else np.repeat(self.given_BxT, times, axis=0)
    return Prompts([row for row in self.rows for _ in range(times)], self.width, given_BxT)

  def padded(self, pad: int) -> np.ndarray:
    """B x width, int32, padded on the left: the ids as they came where that is how they came."""
    if self.given_BxT is not None:
      return self.given_BxT.astype(np.int32)
    ids_BxW = np.full((len(self.rows), self.width), pad, np.int32)
    for ids_W, row in zip(ids_BxW, self.rows):
      ids_W[self.width - len(row) :] = row
    return ids_BxW


class Model(Protocol):
  """What is needed of a language model; `layered` is what `decode.prepare` makes of its weights."""

  config: ModelConfig
  mesh: Mesh

  @property
  def tokenizer(self) -> Any: ...

  @property
  def generation_config(self) -> Mapping[str, Any]: ...

  @property
  def params(self) -> Any: ...

  @property
  def layered(self) -> Any: ...


def make_task(model: Model, prompts: Prompts, options: GenerationOptions, seed: int) -> decode.Task:
  """The task of a batch of prompts. Raises UserError for what cannot be done, before it is run."""
  try:
    return _task(model, prompts, options, seed)
  except UserError as error:
    raise blaming(error, options.inherited) from None


def _task(model: Model, prompts: Prompts, options: GenerationOptions, seed: int) -> decode.Task:
  config, rows = model.config, prompts.rows
  ids_BxW, start_B = decode.left_padded(rows)
  width = ids_BxW.shape[1]
  left_out = prompts.width - width  # columns that are padding in every row are not computed
  new_tokens = options.new_tokens(width, config.max_position_embeddings, left_out)
  eos = _eos(model, options)
  pad = options.pad_token_id
  if pad is not None and pad >= config.vocab_size:
    if "pad_token_id" not in options.inherited:
      raise UserError(f"generate: pad_token_id is {pad}; the model has {config.vocab_size} ids")
    pad = None
  pad = (eos[0] if eos else 0) if pad is None else pad
  negative, added = None, 0
  if options.guidance_scale not in (None, 1.0):
    negative, added = _negative(model, rows, options, width)
    widest = width + added + new_tokens
    if added and widest > config.max_position_embeddings:
      raise UserError(
        f"generate: a negative prompt of {width + added} tokens and {new_tokens} new ones make"
        f" {widest}, {widest - config.max_position_embeddings} more than the model's"
        f" {config.max_position_embeddings} positions"
      )
    ids_BxW = np.pad(ids_BxW, ((0, 0), (added, 0)))
    start_B = start_B + added
  plan = sampling.make_plan(
    options, vocab_size=config.vocab_size, eos=eos, prompt_width=prompts.width,
    max_length=prompts.width + new_tokens,
  )  # fmt: skip
  plan = _shifted(plan, added - left_out)
  stops, stop_state_B = None, None
  if options.stops:
    stops, stop_state_B = _stops(model, options.stops, rows)
  outputs = {
    name for name in ("scores", "logits", "logprobs") if getattr(options, f"output_{name}")
  }
  task = decode.Task(
    ids_BxW, start_B, new_tokens, plan, row_keys(rows, seed), options.do_sample, eos, pad, stops,
    stop_state_B, negative, frozenset(outputs),
  )  # fmt: skip
  return _filled(task, -len(rows) % batch_ways(model.mesh))


def make_guesser(
  model: Model, options: GenerationOptions
) -> speculative.Lookup | speculative.Draft:
  assistant = options.assistant_model
  guesses = (
    options.num_assistant_tokens if assistant is not None else options.prompt_lookup_num_tokens
  )
  assert guesses is not None
  if guesses > kv_cache.SPARE_SLOTS:
    raise UserError(f"generate: {guesses} guesses at a time; at most {kv_cache.SPARE_SLOTS} go")
  if batch_ways(model.mesh) > 1:
    raise UserError("generate: speculation goes row by row; the mesh is to have data and fsdp 1")
  if assistant is None:
    return speculative.Lookup(guesses, options.max_matching_ngram_size)
  if not hasattr(assistant, "layered"):
    raise UserError(f"generate: assistant_model is not a model but {assistant!r}")
  ours, theirs = model.config, assistant.config
  for name in ("vocab_size", "max_position_embeddings"):
    if getattr(theirs, name) < getattr(ours, name) or theirs.vocab_size != ours.vocab_size:
      raise UserError(
        f"generate: the assistant's {name} is {getattr(theirs, name)}, the model's"
        f" {getattr(ours, name)}"
      )
  if model.tokenizer is not None and assistant.tokenizer is not None:
    if model.tokenizer.get_vocab() != assistant.tokenizer.get_vocab():
      raise UserError("generate: the assistant's tokenizer is not the model's")
  return speculative.Draft(guesses, theirs, assistant.layered)


def row_keys(rows: Sequence[Sequence[int]], seed: int) -> jax.Array:
  """A key for each row: the seed's, and which of the rows with the same prompt it is.

  So what a prompt gives does not depend on what else is in the batch, and the same prompt several
  times over gives several texts.
  """
  seen: dict[tuple[int, ...], int] = {}
  numbers = []
  for row in rows:
    numbers.append(seen.get(tuple(row), 0))
    seen[tuple(row)] = numbers[-1] + 1
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.array(numbers))


def read_prompts(model: Model, prompts: Any, attention_mask: Any, name: str) -> Prompts:
  """Prompts from a text, texts, or ids with or without a mask. Raises UserError."""
  width, given_BxT = 0, None
  prompts = _listed(prompts, name)
  if isinstance(prompts[0], str):
    if attention_mask is not None:
      raise UserError("generate: an attention_mask belongs to ids, and the prompts are texts")
    rows = _encoded(model, prompts, name)
  else:
    nested = not isinstance(prompts[0], int | np.integer) and np.ndim(prompts[0]) > 0
    arrays = [integers(name, row) for row in (prompts if nested else [prompts])]
    if any(array.ndim != 1 for array in arrays):
      raise UserError(f"generate: {name} have {arrays[0].ndim + 1} axes; ids are rows, or B x T")
    if attention_mask is not None:
      masks = np.atleast_2d(integers("attention_mask", attention_mask))
      shapes = sorted({(len(arrays), len(row)) for row in arrays})
      if shapes != [masks.shape]:
        made = " and ".join(map(str, shapes))
        raise UserError(f"attention_mask have shape {masks.shape}, and the ids make it {made}")
      real_BxT = masks != 0
      if (np.diff(real_BxT.astype(int), axis=1) >= 0).all():
        given_BxT = np.stack(arrays)
      width = masks.shape[1]
      arrays = [row[real] for row, real in zip(arrays, real_BxT)]
    rows = [row.tolist() for row in arrays]
  for row in rows:
    if not row:
      raise UserError("the prompt is empty; begin with at least one token")
    if min(row) < 0 or max(row) >= model.config.vocab_size:
      bad = min(row) if min(row) < 0 else max(row)
      raise UserError(f"{name} hold {bad}; the model takes 0 to {model.config.vocab_size - 1}")
  return Prompts(rows, width or max(map(len, rows)), given_BxT)


def _listed(prompts: Any, name: str) -> list[Any]:
  if isinstance(prompts, str):
    return [prompts]
  if isinstance(prompts, Mapping):
    raise UserError(f"generate: {name} are a dictionary; write lm.generate(**tokenizer(texts))")
  refuse_traced(name, prompts)
  try:
    listed = [] if isinstance(prompts, bytes) else list(prompts)
  except TypeError:
    listed = []
  if not listed:
    raise UserError(f"generate: there is no prompt: {name} are a text, texts, or rows of ids")
  return listed


def _encoded(model: Model, texts: list[Any], name: str) -> list[list[int]]:
  """Ids of each text; of an empty one the token that texts begin with, where there is one."""
  tokenizer = require_tokenizer(model, "generate from text")
  begin = model.generation_config.get("bos_token_id", tokenizer.bos_token_id)
  empty = [begin] if begin is not None and 0 <= begin < model.config.vocab_size else []
  rows = []
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise UserError(f"generate: {name}[{i}] is {text!r}, and {name}[0] a text")
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise UserError(f"generate: {name}[{i}] is not valid text: {error.reason}") from None
    rows.append(list(tokenizer(text).input_ids) or empty)
  return rows


def require_tokenizer(model: Model, what: str) -> Any:
  if model.tokenizer is None:
    raise UserError(f"cannot {what}: the model has no tokenizer; set lm.tokenizer")
  return model.tokenizer


# --- parts of a task ------------------------------------------------------------------------------


def _eos(model: Model, options: GenerationOptions) -> tuple[int, ...]:
  """The ids that end a text: the caller's, the model's, or else the tokenizer's.

  Ids that the model has no row for cannot come; only the caller is told so (`make_plan`).
  """
  eos = options.eos_token_id
  if eos is None and model.tokenizer is not None:
    eos = data.find_end_of_text(model.tokenizer)
  ids = () if eos is None else [eos] if isinstance(eos, int | np.integer) else list(eos)
  if options.eos_token_id is None or "eos_token_id" in options.inherited:
    ids = [i for i in ids if 0 <= i < model.config.vocab_size]
  return tuple(int(i) for i in ids if i != -1)


def _negative(
  model: Model, rows: Sequence[Sequence[int]], options: GenerationOptions, width: int
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
  """The negative prompts, as many as rows, and by how much they are wider than the prompts."""
  if options.negative_prompt is None:
    negative = [row[-1:] for row in rows]  # as transformers: nothing but the last token
  else:
    negative = read_prompts(model, options.negative_prompt, None, "negative_prompt").rows
    if len(negative) == 1:
      negative = list(negative) * len(rows)
    elif len(negative) * options.num_return_sequences == len(rows):  # rows stand several times
      negative = [row for row in negative for _ in range(options.num_return_sequences)]
    if len(negative) != len(rows):
      raise UserError(
        f"generate: there are {len(negative)} negative prompts and {len(rows)} prompts"
      )
  ids_BxN, start_B = decode.left_padded(negative)
  missing = max(width - ids_BxN.shape[1], 0)
  ids_BxN = np.pad(ids_BxN, ((0, 0), (missing, 0)))
  return (ids_BxN, start_B + missing), ids_BxN.shape[1] - width


def _shifted(plan: sampling.Plan, columns: int) -> sampling.Plan:
  """A plan for prompts with so many more columns of padding; fewer where it is negative."""
  values = dict(plan.values)
  for name in ("min_length", "forced_eos"):
    if name in values:
      values[name] = (values[name][0] + np.int32(columns), *values[name][1:])
  return plan._replace(values=values)


def _stops(
  model: Model, strings: tuple[str, ...], rows: Sequence[Sequence[int]]
) -> tuple[StopTable, np.ndarray]:
  tokenizer = require_tokenizer(model, "look for stop strings")
  table = _stop_table(strings, tokenizer, model.config.vocab_size)
  return jax.tree.map(jax.numpy.asarray, table), np.array(
    [table.after(row) for row in rows], np.int32
  )


@functools.lru_cache(maxsize=8)
def _stop_table(strings: tuple[str, ...], tokenizer: Any, size: int) -> StopTable:
  spelled = token_bytes(tokenizer)[:size]
  return make_stop_table(strings, spelled + [b""] * (size - len(spelled)))


def _filled(task: decode.Task, rows: int) -> decode.Task:
  """The task with so many rows more, copies of its last, so that the mesh divides the batch."""
  if not rows:
    return task

  def fill(x_B: Any) -> Any:
    return jax.numpy.concatenate([x_B, jax.numpy.repeat(x_B[-1:], rows, axis=0)])

  per_row = ("ids_BxW", "start_B", "keys_B", "stop_state_B")
  changed = {name: getattr(task, name) for name in per_row}
  filled = jax.tree.map(fill, (changed, task.negative))
  to_numpy = lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)  # noqa: E731
  changed, negative = jax.tree.map(to_numpy, filled)
  return task._replace(**changed, negative=negative)
