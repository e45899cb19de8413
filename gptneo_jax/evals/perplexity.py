"""Loss, perplexity and bits per byte of documents, overall and per subset.

`evaluate` is for training; `measure` reports more about a loaded model: loss by position in the
context, calibration, other units; and it resumes after an interruption. Both score each token once,
put the end-of-text token before each document, sum in float64, and count the bytes of the original
text in UTF-8.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gptneo_jax import data
from gptneo_jax.cli import progress_bar
from gptneo_jax.data import EvaluationBatches, KeptBatches
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.evals.resume_file import ResumeFile
from gptneo_jax.evals.token_statistics import TokenStatistics
from gptneo_jax.generation.requests import require_tokenizer


def evaluate(
  predict: Callable[[dict[str, np.ndarray]], Any], batches: EvaluationBatches | KeptBatches
) -> dict[str, float]:
  """Loss of the documents, for training.

  predict: starts the computation of a batch; the negative log-likelihood of each token in nats
    times its weight, B x T (see `data.document_nll`).

  Returns `eval/loss` (nats per token), `eval/perplexity` (its exponential) and
  `eval/bits_per_byte`; if there are several subsets, also the same followed by /SUBSET.
  """
  nll_per_document = data.document_nll(predict, batches)
  results = {}
  for subset, numbers in _groups(batches.subsets).items():
    nll = sum(nll_per_document.get(d, 0.0) for d in numbers)
    tokens = sum(batches.tokens_per_document[d] for d in numbers)
    size = sum(batches.bytes_per_document[d] for d in numbers)
    if tokens:
      suffix = f"/{subset}" if subset else ""
      results[f"eval/loss{suffix}"] = nll / tokens
      results[f"eval/perplexity{suffix}"] = _exp(nll / tokens)
      results[f"eval/bits_per_byte{suffix}"] = nll / (size * math.log(2))
  return results


def windows_name(seq_len: int, stride: int | None) -> str:
  """The windows in which documents are scored, for reports: figures depend on them."""
  if stride is None:
    return f"disjoint windows of {seq_len} tokens"
  return f"windows of {seq_len} tokens, strided by {stride}"


def measure(
  lm: LanguageModel,
  documents: Iterable[data.Document],
  *,
  seq_len: int,
  stride: int | None = None,
  batch_size: int = 8,
  resume_file: ResumeFile | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Figures of a model on documents, all from one pass.

  Args:
    seq_len: inputs of a window, at most the model's positions.
    stride: see `evaluation_windows` of data/evaluation.py; None: disjoint windows.
    batch_size: windows at once; a multiple of the mesh's data x fsdp.
    resume_file: where the state is kept from time to time, and resumed from.

  Returns a dictionary of
    windows: as `windows_name` returns it.
    all, subsets (by name): loss (nats per token), perplexity, word_perplexity (words are separated
      by white space; None where it exceeds all floats), byte_perplexity, bits_per_byte, accuracy
      (of the likeliest token), and the numbers of documents, tokens, words and bytes.
    by_position: loss and tokens by the number of inputs seen, from one to seq_len, in bins.
    calibration: mean confidence in the likeliest token and its accuracy, in 10 bins of confidence;
      calibration_error: the mean distance between the two, weighted by tokens.
    text_sha256: of the documents as they were read.

  Raises UserError if there is no token to score, if a loss is not finite, or if the resume file is
  of other documents.
  """
  reader = _Reader(documents)
  tokenizer = require_tokenizer(lm, "measure perplexity")
  batches = data.EvaluationBatches(
    reader, tokenizer, batch_size=batch_size, seq_len=seq_len, stride=stride, by_length=True
  )
  statistics, done = TokenStatistics(seq_len), 0
  state = resume_file.read() if resume_file else None
  with progress_bar(
    desc="evaluating", unit=" tokens", unit_scale=True, disable=not progress
  ) as bar:
    if resume_file and state is not None:
      done = state["batches"]
      _skip(batches, done, reader, state["read"], resume_file)
      statistics.set_state(state["sums"])
      bar.update(statistics.tokens)
      bar.unpause()  # the rate shown is that of this run
    # Each batch with the hash of the documents that had been read when it was made.
    pairs = ((batch, reader.sha256) for batch in batches)
    for (batch, read), predictions in data.one_ahead(lambda pair: lm.predictions(pair[0]), pairs):
      before, rows = statistics.tokens, batch["row_document"]
      statistics.add(batch["weights"], [batches.subsets[d] for d in rows if d >= 0], predictions)
      done += 1
      if resume_file:
        resume_file.write_if_due({"batches": done, "read": read, "sums": statistics.get_state()})
      bar.update(statistics.tokens - before)
      bar.set_postfix_str(f"loss {statistics.loss:.4f}", refresh=False)
  if not statistics.tokens:
    raise UserError("the documents hold no text to score")
  return {
    "windows": windows_name(seq_len, stride),
    **_summaries(statistics, batches, reader),
    **statistics.by_position(),
    **statistics.calibration(),
    "text_sha256": reader.sha256,
  }


class _Reader:
  """Documents with their numbers of words, and a hash of all that have been read."""

  def __init__(self, documents: Iterable[data.Document]):
    self._documents = documents
    self._hash = hashlib.sha256()
    self.words_per_document: list[int] = []

  def __iter__(self) -> Iterator[data.Document]:
    for document in self._documents:
      self.words_per_document.append(len(document.text.split()))
      for text in (document.subset, document.text):
        encoded = text.encode()
        self._hash.update(len(encoded).to_bytes(8, "big") + encoded)
      yield document

  @property
  def sha256(self) -> str:
    return self._hash.hexdigest()


def _skip(
  batches: EvaluationBatches, count: int, reader: _Reader, read: str, resume_file: ResumeFile
) -> None:
  """Takes the batches that are done. Raises UserError if their documents have another hash."""
  for _ in range(count):
    next(batches, None)
  if reader.sha256 != read:
    raise UserError(f"the documents are not those of {resume_file.path}; delete it to start again")


def _summaries(
  statistics: TokenStatistics, batches: EvaluationBatches, reader: _Reader
) -> dict[str, Any]:
  groups = _groups(batches.subsets)
  subsets = {}
  for subset, numbers in groups.items():
    parts = [subset] if subset else list(statistics.subsets)
    nll, correct = (
      math.fsum(statistics.subsets[part][i] for part in parts if part in statistics.subsets)
      for i in (0, 1)
    )
    tokens, words, size = (
      sum(counts[d] for d in numbers)
      for counts in (
        batches.tokens_per_document, reader.words_per_document, batches.bytes_per_document
      )
    )  # fmt: skip
    if tokens:
      subsets[subset] = {
        "loss": nll / tokens,
        "perplexity": _finite_exp(nll / tokens),
        "word_perplexity": _finite_exp(nll / words) if words else None,
        "byte_perplexity": _finite_exp(nll / size),
        "bits_per_byte": nll / (size * math.log(2)),
        "accuracy": correct / tokens,
        "documents": len(numbers),
        "tokens": tokens,
        "words": words,
        "bytes": size,
      }
  return {"all": subsets.pop(""), "subsets": subsets}


def _groups(subsets: list[str]) -> dict[str, list[int]]:
  """Indices of all documents ('') and, if there are several subsets, of those of each subset."""
  groups = {"": list(range(len(subsets)))}
  names = dict.fromkeys(subsets)
  if len(names) > 1:
    groups |= {name: [d for d, s in enumerate(subsets) if s == name] for name in names}
  return groups


def _finite_exp(x: float) -> float | None:
  """None if it exceeds all floats, as the perplexity per word of a text without spaces may."""
  return None if math.isinf(_exp(x)) else _exp(x)


def _exp(x: float) -> float:
  return math.exp(x) if x < 700 else math.inf
