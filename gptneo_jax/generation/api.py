"""Continuations of prompts: from texts and options to tokens on the device, and back to texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from gptneo_jax import interop
from gptneo_jax.errors import UserError
from gptneo_jax.generation import beam_search, decode, speculative
from gptneo_jax.generation.detokenization import TextStream, new_text
from gptneo_jax.generation.requests import (
  Model,
  Prompts,
  make_guesser,
  make_task,
  read_prompts,
  require_tokenizer,
)
from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.generation.sampling.options import blaming
from gptneo_jax.model.matmul import exact_products

_STREAMED = 4  # tokens made between two looks at a stream


class Generation(NamedTuple):
  """Continued prompts, each num_return_sequences times over.

  sequences: int32 B x T as transformers lays them out: the prompts, padded on the left to one
    length, then the new tokens, padded on the right behind the end of text.
  texts: the new text of each, without special tokens: what it adds to the prompt when both are
    decoded together; None where there is no tokenizer.
  logprobs: float32 B x N, of each new token under the scores that it was chosen by (transformers'
    compute_transition_scores, normalised), 0 behind the end; with output_logprobs.
  scores: float32 N x B x V, logits after all processors and filters; with output_scores.
  logits: float32 N x B x V, before them; with output_logits.
  sequences_scores: float32 B, of beams: sum of log-probabilities / length^length_penalty.
  lengths: int B, new tokens of each, the end of text included.
  accepted: share of the guesses that were kept, with speculation.
  """

  sequences: np.ndarray
  texts: list[str] | None
  logprobs: np.ndarray | None = None
  scores: np.ndarray | None = None
  logits: np.ndarray | None = None
  sequences_scores: np.ndarray | None = None
  lengths: np.ndarray | None = None
  accepted: float | None = None


def generate(
  model: Model, prompts: Any, attention_mask: Any, seed: int, options: dict[str, Any]
) -> Generation:
  """Continues prompts. Raises UserError; see `LanguageModel.generate`."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  batch = read_prompts(model, prompts, attention_mask, "prompts")
  with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
    if settings.num_beams > 1:
      task = make_task(model, batch, settings, seed)
      beams = beam_search.Beams(
        settings.num_beams, settings.num_return_sequences, settings.length_penalty,
        settings.early_stopping,
      )  # fmt: skip
      made = beam_search.run(model.config, model.layered, task, beams)
      batch = batch.repeated(settings.num_return_sequences)
      return _generation(model, task, batch, made, made.scores_B)
    batch = batch.repeated(settings.num_return_sequences)
    if settings.speculates:
      return _speculated(model, batch, settings, seed)
    task = make_task(model, batch, settings, seed)
    return _generation(model, task, batch, decode.run(model.config, model.layered, task))


def check(model: Model, prompt: str, options: dict[str, Any]) -> None:
  """Raises UserError where this prompt cannot be continued by as many tokens as the options ask."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  try:
    (row,), _, _ = read_prompts(model, prompt, None, "prompts")
    settings.new_tokens(len(row), model.config.max_position_embeddings)
  except UserError as error:
    raise blaming(error, settings.inherited) from None


def stream(model: Model, prompt: Any, seed: int, options: dict[str, Any]) -> Iterator[str]:
  """The new text of one prompt, piece by piece, whole characters only. Raises UserError."""
  settings = GenerationOptions.from_dict(options, model.generation_config)
  if settings.num_beams > 1 or settings.num_return_sequences > 1:
    error = "generate: a stream is of one continuation; num_beams and num_return_sequences are 1"
    raise blaming(UserError(error), settings.inherited)
  batch = read_prompts(model, prompt, None, "prompts")
  if len(batch.rows) != 1:
    raise UserError(f"generate: a stream is of one prompt, and there are {len(batch.rows)}")
  require_tokenizer(model, "stream text")
  with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
    task = make_task(model, batch, settings, seed)
    running = decode.Stream(model.config, model.layered, task)
  return _pieces(model, running, TextStream(model.tokenizer, batch.rows[0]))


def _pieces(model: Model, running: decode.Stream, texts: TextStream) -> Iterator[str]:
  tokens = 1
  while True:
    with jax.set_mesh(model.mesh), exact_products(model.config.dtype):
      running.advance(tokens)
    tokens = _STREAMED
    made = running.read()
    _check_finite(model, made.fault)
    finished = running.finished
    piece = texts.push(made.ids_BxN[0, : made.count_B[0]].tolist(), finished)
    if piece:
      yield piece
    if finished:
      return


def _speculated(
  model: Model, prompts: Prompts, options: GenerationOptions, seed: int
) -> Generation:
  """Row after row: each goes its own number of tokens at a time."""
  guesser = make_guesser(model, options)
  task = make_task(model, prompts, options, seed)
  made, proposed, accepted = [], 0, 0
  for b in range(len(prompts.rows)):
    per_row = ("ids_BxW", "start_B", "keys_B", "stop_state_B")
    own = {name: getattr(task, name) for name in per_row if getattr(task, name) is not None}
    one = task._replace(**{name: x[b : b + 1] for name, x in own.items()})
    result = speculative.run(model.config, model.layered, one, guesser)
    _check_finite(model, result.made.fault)
    made.append(result.made.ids_BxN[0])
    proposed, accepted = proposed + result.proposed, accepted + result.accepted
  count_B = np.array([len(ids) for ids in made])
  ids_BxN = np.full((len(made), count_B.max()), task.pad, np.int32)
  for ids_N, ids in zip(ids_BxN, made):
    ids_N[: len(ids)] = ids
  generation = _generation(model, task, prompts, decode.Continuation(ids_BxN, count_B, {}))
  return generation._replace(accepted=accepted / max(proposed, 1))


def _generation(
  model: Model,
  task: decode.Task,
  prompts: Prompts,
  made: decode.Continuation | beam_search.BeamContinuation,
  scores_B: np.ndarray | None = None,
) -> Generation:
  _check_finite(model, made.fault)
  B = len(prompts.rows)  # without those added for the mesh
  count_B = made.count_B[:B]
  ids_BxN = made.ids_BxN[:B, : count_B.max()]
  sequences = np.concatenate([prompts.padded(task.pad), ids_BxN], axis=1)
  texts = None
  if model.tokenizer is not None:
    texts = [
      new_text(model.tokenizer, row, ids[:count].tolist())
      for row, ids, count in zip(prompts.rows, ids_BxN, count_B)
    ]
  N, kept = ids_BxN.shape[1], made.kept
  logprobs = scores = logits = None
  if "logprobs" in kept:
    logprobs = np.where(np.arange(N) < count_B[:, None], kept["logprobs"][:B, :N], 0.0)
  if "scores" in kept:
    scores = kept["scores"][:N, :B]
  if "logits" in kept:
    logits = kept["logits"][:N, :B]
  scores_B = None if scores_B is None else scores_B[:B]
  return Generation(sequences, texts, logprobs, scores, logits, scores_B, count_B)


def _check_finite(model: Model, fault: int) -> None:
  """Raises UserError, naming the weights that are not finite, for what a loop has ended with."""
  if not fault:
    return
  if fault == decode.BAD_SCORES:
    raise UserError(
      "generate: no token is left to choose: the options forbid all, or make scores that are not"
      " finite"
    )
  if fault == decode.BAD_GUESSES:
    raise UserError("generate: the assistant's logits are not finite")
  name = interop.first_not_finite(model.params)
  why = (
    f"the weight {name} holds NaN or infinity" if name else f"they overflow {model.config.dtype}"
  )
  raise UserError(f"generate: the model's logits are not finite: {why}")
