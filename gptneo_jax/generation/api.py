"""Continuations of prompts: from texts and options to tokens on the device, and back to texts.

`prepare` reads and checks a call, before anything is computed; `generate` and `stream` run it on
the unstacked parameters of the model (generation/unstacked.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from gptneo_jax import interop
from gptneo_jax.errors import UserError
from gptneo_jax.generation import beam_search, continuous, decode, speculative
from gptneo_jax.generation.detokenization import TextStream, new_text
from gptneo_jax.generation.requests import (
  Model,
  Prompts,
  make_drafter,
  make_request,
  read_prompts,
  require_tokenizer,
  row_of,
)
from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.generation.sampling.options import blaming
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways

_STREAMED = 4  # tokens of a stream that are generated before it is looked at again


class Generation(NamedTuple):
  """Continued prompts, each num_return_sequences times over.

  sequences: int32 B x T in transformers' layout: the prompts, padded on the left to one length,
    then the new tokens, padded on the right after the end of text.
  texts: the new text of each, without special tokens: what it adds to the prompt when both are
    decoded together; None without a tokenizer.
  logprobs: float32 B x N, log-probability of each new token under the scores that it was chosen by
    (transformers' compute_transition_scores, normalized), 0 after the end; with output_logprobs.
  scores: float32 N x B x V, logits after all processors and filters; with output_scores.
  logits: float32 N x B x V, before them; with output_logits.
  sequences_scores: float32 B, of beams: sum of log-probabilities / length^length_penalty.
  lengths: int B, new tokens of each, the end of text included.
  accepted: share of the draft tokens that were kept, with speculation.
  """

  sequences: np.ndarray
  texts: list[str] | None
  logprobs: np.ndarray | None = None
  scores: np.ndarray | None = None
  logits: np.ndarray | None = None
  sequences_scores: np.ndarray | None = None
  lengths: np.ndarray | None = None
  accepted: float | None = None


class Call(NamedTuple):
  """A call that can be run: its request for the device, and the prompt of each row of the result.

  beams: settings of beam search. drafter: what proposes draft tokens, with speculation.
  """

  prompts: Prompts
  request: decode.GenerationRequest
  beams: beam_search.Beams | None = None
  drafter: speculative.PromptLookup | speculative.DraftModel | None = None


def prepare(
  model: Model, prompts: Any, attention_mask: Any, seed: int, options: dict[str, Any]
) -> Call:
  """Reads the prompts and options of a call. Raises UserError; see `LanguageModel.generate`."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  batch = read_prompts(model, prompts, attention_mask, "prompts")
  repeated = batch.repeated(settings.num_return_sequences)
  with jax.set_mesh(model.mesh):
    if settings.num_beams > 1:
      beams = beam_search.Beams(
        num_beams=settings.num_beams,
        returned=settings.num_return_sequences,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
      )
      return Call(repeated, make_request(model, batch, settings, seed), beams=beams)
    drafter = make_drafter(model, settings) if settings.speculates else None
    return Call(repeated, make_request(model, repeated, settings, seed), drafter=drafter)


def prepare_stream(model: Model, prompt: Any, seed: int, options: dict[str, Any]) -> Call:
  """As `prepare`, for the one continuation of one prompt that a stream is of. Raises UserError."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  if settings.num_beams > 1 or settings.num_return_sequences > 1:
    error = "generate: a stream is of one continuation; num_beams and num_return_sequences are 1"
    raise blaming(UserError(error), settings.inherited)
  batch = read_prompts(model, prompt, None, "prompts")
  if len(batch.rows) != 1:
    raise UserError(f"generate: a stream is of one prompt, and there are {len(batch.rows)}")
  require_tokenizer(model, "stream text")
  with jax.set_mesh(model.mesh):
    return Call(batch, make_request(model, batch, settings, seed))


def check(model: Model, prompt: str | list[int], options: dict[str, Any]) -> None:
  """Raises UserError if the model has too few positions for the prompt and its new tokens."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  try:
    (row,), _, _ = read_prompts(model, prompt, None, "prompts")
    settings.new_tokens(len(row), model.config.max_position_embeddings)
  except UserError as error:
    raise blaming(error, settings.inherited) from None


def generate(model: Model, unstacked_params: Any, call: Call) -> Generation:
  """Runs a call. Raises UserError if the model's numbers are not finite."""
  prompts, request, beams, drafter = call
  with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
    if beams is not None:
      found = beam_search.run(model.config, unstacked_params, request, beams)
      return _generation(model, request.pad, prompts, found, found.scores_B)
    if drafter is not None:
      return _speculated(model, unstacked_params, call, drafter)
    slots = continuous.default_slots(model.mesh)
    if len(prompts.rows) > slots and _can_take_turns(model, request):
      rows = [row_of(request, b) for b in range(len(prompts.rows))]
      made = continuous.run(model.config, unstacked_params, rows, slots)
    else:
      made = decode.run(model.config, unstacked_params, request)
    return _generation(model, request.pad, prompts, made)


def _can_take_turns(model: Model, request: decode.GenerationRequest) -> bool:
  """Whether rows may share slots, so that none waits for the longest."""
  return request.negative is None and not request.outputs and batch_ways(model.mesh) == 1


def stream(model: Model, unstacked_params: Any, call: Call) -> Iterator[str]:
  """The new text of a call of one row, in pieces of complete characters. Raises UserError."""
  with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
    decoding = decode.Decoding(model.config, unstacked_params, call.request)
  texts = TextStream(model.tokenizer, call.prompts.rows[0])
  tokens = 1
  while True:
    with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
      decoding.advance(tokens)
    tokens = _STREAMED
    made = decoding.read()
    _check_finite(model, made.fault)
    finished = decoding.finished
    piece = texts.push(made.ids_BxN[0, : made.count_B[0]].tolist(), finished)
    if piece:
      yield piece
    if finished:
      return


def _speculated(
  model: Model,
  unstacked_params: Any,
  call: Call,
  drafter: speculative.PromptLookup | speculative.DraftModel,
) -> Generation:
  """Row after row, as each advances by its own number of tokens at a time."""
  rows, proposed, accepted = [], 0, 0
  for b in range(len(call.prompts.rows)):
    result = speculative.run(model.config, unstacked_params, row_of(call.request, b), drafter)
    _check_finite(model, result.made.fault)
    rows.append(result.made.ids_BxN[0])
    proposed, accepted = proposed + result.proposed, accepted + result.accepted
  count_B = np.array([len(ids) for ids in rows])
  ids_BxN = np.full((len(rows), count_B.max()), call.request.pad, np.int32)
  for ids_N, ids in zip(ids_BxN, rows):
    ids_N[: len(ids)] = ids
  made = decode.Continuation(ids_BxN, count_B, kept={})
  generation = _generation(model, call.request.pad, call.prompts, made)
  return generation._replace(accepted=accepted / max(proposed, 1))


def _generation(
  model: Model,
  pad: int,
  prompts: Prompts,
  made: decode.Continuation | beam_search.BeamContinuation,
  scores_B: np.ndarray | None = None,
) -> Generation:
  _check_finite(model, made.fault)
  B = len(prompts.rows)  # without those added for the mesh
  count_B = made.count_B[:B]
  ids_BxN = made.ids_BxN[:B, : count_B.max()]
  texts = None
  if model.tokenizer is not None:
    texts = [
      new_text(model.tokenizer, row, ids[:count].tolist())
      for row, ids, count in zip(prompts.rows, ids_BxN, count_B)
    ]
  N, kept = ids_BxN.shape[1], made.kept
  logprobs = None
  if "logprobs" in kept:
    logprobs = np.where(np.arange(N) < count_B[:, None], kept["logprobs"][:B, :N], 0.0)
  return Generation(
    sequences=np.concatenate([prompts.padded(pad), ids_BxN], axis=1),
    texts=texts,
    logprobs=logprobs,
    scores=kept["scores"][:N, :B] if "scores" in kept else None,
    logits=kept["logits"][:N, :B] if "logits" in kept else None,
    sequences_scores=None if scores_B is None else scores_B[:B],
    lengths=count_B,
  )


def _check_finite(model: Model, fault: int) -> None:
  """Raises UserError for a fault of the loop, naming the weights that are not finite."""
  if not fault:
    return
  if fault == decode.BAD_SCORES:
    raise UserError(
      "generate: no token is left to choose: the options forbid all, or make scores that are not"
      " finite"
    )
  if fault == decode.BAD_DRAFTS:
    raise UserError("generate: the assistant's logits are not finite")
  name = interop.first_not_finite(model.params)
  why = (
    f"the weight {name} holds NaN or infinity" if name else f"they overflow {model.config.dtype}"
  )
  raise UserError(f"generate: the model's logits are not finite: {why}")
