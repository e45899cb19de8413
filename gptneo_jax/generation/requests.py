"""From prompts and options to a generation request. What cannot be done is refused here."""

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
  """Prompts as ids without padding, and the columns that they take up in `sequences`.

  width: T for ids given as B x T, else the length of the longest. `max_length`, `min_length` and
    `forced_eos_token_id` count from it.
  given_BxT: the ids as they were given, padding included, if all of it was on the left.
  """

  rows: list[list[int]]
  width: int
  given_BxT: np.ndarray | None = None

  def repeated(self, times: int) -> Prompts:
    """Each prompt `times` over."""
    given_BxT = None if self.given_BxT is None else np.repeat(self.given_BxT, times, axis=0)
    return Prompts([row for row in self.rows for _ in range(times)], self.width, given_BxT)

  def padded(self, pad: int) -> np.ndarray:
    """B x width, int32, padded on the left; ids that were given so are returned as they were."""
    if self.given_BxT is not None:
      return self.given_BxT.astype(np.int32)
    ids_BxW = np.full((len(self.rows), self.width), pad, np.int32)
    for ids_W, row in zip(ids_BxW, self.rows):
      ids_W[self.width - len(row) :] = row
    return ids_BxW


class Model(Protocol):
  """What is needed of a language model besides its unstacked parameters.

  params: looked at only to name a weight that is not finite.
  """

  config: ModelConfig
  mesh: Mesh

  @property
  def tokenizer(self) -> Any: ...

  @property
  def generation_config(self) -> Mapping[str, Any]: ...

  @property
  def params(self) -> Any: ...


def make_request(
  model: Model, prompts: Prompts, options: GenerationOptions, seed: int
) -> decode.GenerationRequest:
  """The request of a batch of prompts. Raises UserError for what cannot be done."""
  try:
    return _request(model, prompts, options, seed)
  except UserError as error:
    raise blaming(error, options.inherited) from None


def _request(
  model: Model, prompts: Prompts, options: GenerationOptions, seed: int
) -> decode.GenerationRequest:
  config, rows = model.config, prompts.rows
  ids_BxW, left_pad_B = decode.left_padded(rows)
  width = ids_BxW.shape[1]
  left_out = prompts.width - width  # columns that are padding in every row are not computed
  new_tokens = options.new_tokens(width, config.max_position_embeddings, left_out)
  eos = _eos(model, options)
  negative, added = None, 0
  if options.guidance_scale not in (None, 1.0):
    negative, added = _negative(model, rows, options, width)
    total = width + added + new_tokens
    if added and total > config.max_position_embeddings:
      raise UserError(
        f"generate: a negative prompt of {width + added} tokens and {new_tokens} new ones make"
        f" {total}, {total - config.max_position_embeddings} more than the model's"
        f" {config.max_position_embeddings} positions"
      )
    ids_BxW = np.pad(ids_BxW, ((0, 0), (added, 0)))
    left_pad_B = left_pad_B + added
  pipeline = sampling.make_pipeline(
    options, vocab_size=config.vocab_size, eos=eos, prompt_width=prompts.width,
    max_length=prompts.width + new_tokens,
  )  # fmt: skip
  stops, stop_state_B = None, None
  if options.stops:
    stops, stop_state_B = _stops(model, options.stops, rows)
  request = decode.GenerationRequest(
    ids_BxW=ids_BxW,
    left_pad_B=left_pad_B,
    new_tokens=new_tokens,
    pipeline=_shifted(pipeline, added - left_out),
    keys_B=row_keys(rows, seed),
    sample=options.do_sample,
    eos=eos,
    pad=_pad(model, options, eos),
    stops=stops,
    stop_state_B=stop_state_B,
    negative=negative,
    outputs=frozenset(
      name for name in ("scores", "logits", "logprobs") if getattr(options, f"output_{name}")
    ),
  )
  return _filled(request, -len(rows) % batch_ways(model.mesh))


def make_drafter(
  model: Model, options: GenerationOptions
) -> speculative.PromptLookup | speculative.DraftModel:
  """What proposes draft tokens. Raises UserError where it cannot for this model."""
  assistant = options.assistant_model
  name = "prompt_lookup_num_tokens" if assistant is None else "num_assistant_tokens"
  draft_tokens = getattr(options, name)
  if draft_tokens > kv_cache.SPECULATION_PLACES:
    raise UserError(
      f"generate: {name} is {draft_tokens}; it is at most {kv_cache.SPECULATION_PLACES}"
    )
  if batch_ways(model.mesh) > 1:
    raise UserError("generate: speculation runs row by row; make a mesh with data=1, fsdp=1")
  if assistant is None:
    return speculative.PromptLookup(draft_tokens, options.max_matching_ngram_size)
  if not hasattr(assistant, "unstacked_params"):
    raise UserError(f"generate: assistant_model is not a model but {assistant!r}")
  ours, theirs = model.config, assistant.config
  for field in ("vocab_size", "max_position_embeddings"):
    if getattr(theirs, field) < getattr(ours, field) or theirs.vocab_size != ours.vocab_size:
      raise UserError(
        f"generate: the assistant's {field} is {getattr(theirs, field)}, the model's"
        f" {getattr(ours, field)}"
      )
  if model.tokenizer is not None and assistant.tokenizer is not None:
    if model.tokenizer.get_vocab() != assistant.tokenizer.get_vocab():
      raise UserError("generate: the assistant's tokenizer is not the model's")
  return speculative.DraftModel(draft_tokens, theirs, assistant.unstacked_params)


def row_of(request: decode.GenerationRequest, b: int) -> decode.GenerationRequest:
  """The request of one of the rows, without padding."""
  row = request._replace(**{name: x[b : b + 1] for name, x in _per_row(request).items()})
  padding = int(row.left_pad_B[0])
  return row._replace(
    ids_BxW=row.ids_BxW[:, padding:],
    left_pad_B=np.zeros_like(row.left_pad_B),
    pipeline=_shifted(row.pipeline, -padding),
  )


def _per_row(request: decode.GenerationRequest) -> dict[str, Any]:
  """The fields that have an entry for each row."""
  names = ("ids_BxW", "left_pad_B", "keys_B", "stop_state_B")
  fields = {name: getattr(request, name) for name in names}
  return {name: x for name, x in fields.items() if x is not None}


def row_keys(rows: Sequence[Sequence[int]], seed: int) -> jax.Array:
  """A random key for each row: of the seed, and its number among the rows with the same prompt.

  So the text of a prompt does not depend on the other prompts of the batch, and the same prompt
  several times over has several texts.
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
      raise UserError("generate: an attention_mask belongs to ids, but the prompts are texts")
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
  """Ids of each text; an empty one becomes the beginning-of-text token if there is one."""
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


# --- parts of a request ---------------------------------------------------------------------------


def _eos(model: Model, options: GenerationOptions) -> tuple[int, ...]:
  """The ids that end a text: the caller's, the model's, or else the tokenizer's.

  Ids beyond the vocabulary are an error if the caller gave them (`make_pipeline`), else left out.
  """
  eos = options.eos_token_id
  if eos is None and model.tokenizer is not None:
    eos = data.find_end_of_text(model.tokenizer)
  ids = () if eos is None else [eos] if isinstance(eos, int | np.integer) else list(eos)
  if options.eos_token_id is None or "eos_token_id" in options.inherited:
    ids = [i for i in ids if 0 <= i < model.config.vocab_size]
  return tuple(int(i) for i in ids if i != -1)


def _pad(model: Model, options: GenerationOptions, eos: tuple[int, ...]) -> int:
  """The id after an end of text: the caller's, the model's, or else the first end of text."""
  pad = options.pad_token_id
  if pad is not None and pad >= model.config.vocab_size:
    if "pad_token_id" not in options.inherited:
      raise UserError(
        f"generate: pad_token_id is {pad}; the model has {model.config.vocab_size} ids"
      )
    pad = None
  return (eos[0] if eos else 0) if pad is None else pad


def _negative(
  model: Model, rows: Sequence[Sequence[int]], options: GenerationOptions, width: int
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
  """The negative prompt of each row, as `GenerationRequest.negative` has them.

  Returns as well by how many columns they are wider than the prompts.
  """
  if options.negative_prompt is None:
    negative = [row[-1:] for row in rows]  # as in transformers: the last token alone
  else:
    negative = read_prompts(model, options.negative_prompt, None, "negative_prompt").rows
    if len(negative) == 1:
      negative = list(negative) * len(rows)
    elif len(negative) * (times := options.num_return_sequences) == len(rows):
      negative = [row for row in negative for _ in range(times)]  # as the prompts are repeated
    if len(negative) != len(rows):
      raise UserError(
        f"generate: there are {len(negative)} negative prompts and {len(rows)} prompts"
      )
  ids_BxW, left_pad_B = decode.left_padded(negative)
  missing = max(width - ids_BxW.shape[1], 0)
  ids_BxW = np.pad(ids_BxW, ((0, 0), (missing, 0)))
  return (ids_BxW, left_pad_B + missing), ids_BxW.shape[1] - width


def _shifted(pipeline: sampling.LogitsPipeline, columns: int) -> sampling.LogitsPipeline:
  """The pipeline for prompts with `columns` more columns of padding (fewer if negative)."""
  values = dict(pipeline.values)
  for name in ("min_length", "forced_eos"):
    if name in values:
      values[name] = (values[name][0] + np.int32(columns), *values[name][1:])
  return pipeline._replace(values=values)


def _stops(
  model: Model, strings: tuple[str, ...], rows: Sequence[Sequence[int]]
) -> tuple[StopTable, np.ndarray]:
  tokenizer = require_tokenizer(model, "look for stop strings")
  table = _stop_table(strings, tokenizer, model.config.vocab_size)
  return table, np.array([table.after(row) for row in rows], np.int32)


@functools.lru_cache(maxsize=8)
def _stop_table(strings: tuple[str, ...], tokenizer: Any, size: int) -> StopTable:
  spelled = token_bytes(tokenizer)[:size]
  return make_stop_table(strings, spelled + [b""] * (size - len(spelled)))


def _filled(request: decode.GenerationRequest, rows: int) -> decode.GenerationRequest:
  """The request with `rows` more rows, copies of its last, so that the mesh divides the batch."""
  if not rows:
    return request

  def fill(x_B: Any) -> Any:
    filled = jax.numpy.concatenate([x_B, jax.numpy.repeat(x_B[-1:], rows, axis=0)])
    is_key = jax.dtypes.issubdtype(filled.dtype, jax.dtypes.prng_key)
    return filled if is_key else np.asarray(filled)

  changed, negative = jax.tree.map(fill, (_per_row(request), request.negative))
  return request._replace(**changed, negative=negative)
