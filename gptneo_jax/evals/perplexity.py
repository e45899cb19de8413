"""Loss, perplexity and bits per byte of documents, overall and per subset.

`evaluate` is what training calls; `measure` says more of a loaded model: loss by position in the
context, calibration, other units, and it goes on after a stop. Each token is scored once, the
end-of-text token stands before a document, sums are float64, bytes are the text's own in UTF-8.
"""

from __future__ import annotations

import hashlib
import itertools
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
from gptneo_jax.generation.requests import require_tokenizer
from gptneo_jax.model.chunked_cross_entropy import TokenPredictions

_BINS = 10  # of confidence


def evaluate(
  predict: Callable[[dict[str, np.ndarray]], Any], batches: EvaluationBatches | KeptBatches
) -> dict[str, float]:
  """Scores every token of every document once.

  predict: starts the computation of a batch; the negative log-likelihood of each token in nats
    times its weight, B x T (see `data.document_nll`).
  Returns `eval/loss` (nats per token), `eval/perplexity` (its exponential) and
  `eval/bits_per_byte` (by the documents' real UTF-8 bytes), and, where there are several subsets,
  the same followed by /SUBSET. Sums are float64.
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
  """How documents are cut, to stand in every report: the numbers of different ways differ."""
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
  partial: ResumeFile | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Everything that one pass over the documents tells of a model.

  Args:
    seq_len: inputs of a window, at most the model's positions.
    stride: see `evaluation_windows` of data/evaluation.py; None: disjoint windows.
    batch_size: windows at once; a multiple of the mesh's data x fsdp.
    partial: where sums are kept from time to time, and gone on from.

  Returns a dictionary of
    windows: what `windows_name` says.
    all, subsets (by name): loss (nats per token), perplexity, word_perplexity (words are what white
      space separates; None beyond all floats), byte_perplexity, bits_per_byte, accuracy (of the
      likeliest token), and the documents, tokens, words and bytes they are of.
    by_position: loss and tokens by the number of inputs seen, from one to seq_len, in bins.
    calibration: mean confidence in the likeliest token and how often it was right, in 10 bins of
      confidence; calibration_error: their distance, weighted by tokens.
    text_sha256: of the documents, as they were read.

  Raises UserError if there is no token to score, if a loss is not finite, or if what was kept is of
  other documents.
  """
  reading = _Reading(documents)
  tokenizer = require_tokenizer(lm, "measure perplexity")
  batches = data.EvaluationBatches(
    reading, tokenizer, batch_size=batch_size, seq_len=seq_len, stride=stride, by_length=True
  )
  sums = _Sums(seq_len)
  kept = partial.read() if partial else None
  with progress_bar(
    desc="evaluating", unit=" tokens", unit_scale=True, disable=not progress
  ) as bar:
    if kept is not None:
      _pass_over(batches, kept["batches"], reading, kept["read"], partial)
      sums.set_state(kept["sums"])
      bar.update(sums.tokens)
      bar.unpause()  # the rate is that of this run
    done = kept["batches"] if kept else 0
    # Each batch with the hash of what had been read when it was made.
    pairs = ((batch, reading.sha256) for batch in batches)
    for (batch, read), predictions in data.one_ahead(lambda pair: lm.predictions(pair[0]), pairs):
      before, rows = sums.tokens, batch["row_document"]
      sums.add(batch["weights"], [batches.subsets[d] for d in rows if d >= 0], predictions)
      done += 1
      if partial:
        partial.write_if_due({"batches": done, "read": read, "sums": sums.state()})
      bar.update(sums.tokens - before)
      bar.set_postfix_str(f"loss {sums.loss:.4f}", refresh=False)
  if not sums.tokens:
    raise UserError("the documents hold no text to score")
  return {
    "windows": windows_name(seq_len, stride),
    **_summaries(sums, batches, reading),
    **sums.by_position(),
    **sums.calibration(),
    "text_sha256": reading.sha256,
  }


class _Reading:
  """The documents as they are read: their words counted, and a hash of all so far."""

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


def _pass_over(
  batches: EvaluationBatches, count: int, reading: _Reading, read: str, partial: ResumeFile | None
) -> None:
  """Takes the batches that are done; raises UserError if the documents read are others."""
  for _ in range(count):
    next(batches, None)
  if reading.sha256 != read:
    where = partial.path if partial else ""
    raise UserError(f"the documents are not those of {where}; delete it to begin anew")


class _Sums:
  """Sums over tokens: per subset, per position in the window, per bin of confidence."""

  def __init__(self, seq_len: int):
    self.subsets: dict[str, list[float]] = {}  # nll, correct
    self._positions_2xT = np.zeros((2, seq_len))  # tokens, nll
    self._bins_3xN = np.zeros((3, _BINS))  # tokens, confidence, correct

  def add(self, weights_BxT: np.ndarray, subsets: list[str], predictions: TokenPredictions) -> None:
    """subsets: of the rows that are no padding, which come first."""
    nll_BxT, confidence_BxT, correct_BxT = (np.asarray(x, np.float64) for x in predictions)
    if not np.isfinite(nll_BxT).all():
      raise UserError("the model's losses are not finite; try it with --dtype float32")
    scored_BxT = weights_BxT > 0
    for subset, nll, correct in zip(subsets, nll_BxT.sum(1), correct_BxT.sum(1)):
      entry = self.subsets.setdefault(subset, [0.0, 0.0])
      entry[0] += float(nll)
      entry[1] += float(correct)
    self._positions_2xT[:, : nll_BxT.shape[1]] += scored_BxT.sum(0), nll_BxT.sum(0)
    confidence_N, correct_N = confidence_BxT[scored_BxT], correct_BxT[scored_BxT]
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    for row, of_N in enumerate((np.ones_like(correct_N), confidence_N, correct_N)):
      self._bins_3xN[row] += np.bincount(bin_N, of_N, minlength=_BINS)

  @property
  def tokens(self) -> int:
    return int(self._positions_2xT[0].sum())

  @property
  def loss(self) -> float:
    return float(self._positions_2xT[1].sum() / self.tokens)

  def state(self) -> dict[str, Any]:
    return {
      "subsets": self.subsets,
      "positions": self._positions_2xT.tolist(),
      "bins": self._bins_3xN.tolist(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self.subsets = state["subsets"]
    self._positions_2xT = np.array(state["positions"])
    self._bins_3xN = np.array(state["bins"])

  def by_position(self) -> dict[str, Any]:
    bins = []
    edges = _octave_quarters(self._positions_2xT.shape[1])
    for first, end in itertools.pairwise(edges):
      tokens, nll = self._positions_2xT[:, first:end].sum(1)
      if tokens:
        bins.append(
          {"from": first + 1, "to": end, "tokens": int(tokens), "loss": float(nll / tokens)}
        )
    return {"by_position": bins}

  def calibration(self) -> dict[str, Any]:
    bins = [
      {
        "from": number / _BINS,
        "to": (number + 1) / _BINS,
        "tokens": int(tokens),
        "confidence": float(confidence / tokens),
        "accuracy": float(correct / tokens),
      }
      for number, (tokens, confidence, correct) in enumerate(self._bins_3xN.T)
      if tokens
    ]
    distance = sum(b["tokens"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    return {"calibration": bins, "calibration_error": distance / self.tokens}


def _summaries(sums: _Sums, batches: EvaluationBatches, reading: _Reading) -> dict[str, Any]:
  groups = _groups(batches.subsets)
  subsets = {}
  for subset, numbers in groups.items():
    parts = [subset] if subset else list(sums.subsets)
    nll, correct = (
      math.fsum(sums.subsets[part][which] for part in parts if part in sums.subsets)
      for which in (0, 1)
    )
    tokens, words, size = (
      sum(counts[d] for d in numbers)
      for counts in (
        batches.tokens_per_document, reading.words_per_document, batches.bytes_per_document
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
  """Numbers of the documents of all ('') and, if there are several, of each subset."""
  groups = {"": list(range(len(subsets)))}
  names = dict.fromkeys(subsets)
  if len(names) > 1:
    groups |= {name: [d for d, s in enumerate(subsets) if s == name] for name in names}
  return groups


def _octave_quarters(n: int) -> list[int]:
  """0, then 1, 2, 3, … n: four bins each time the number doubles, as far as they differ."""
  edges = {min(math.ceil(2 ** (k / 4)), n) for k in range(4 * math.ceil(math.log2(n)) + 1)}
  return sorted({0, n} | edges)


def _finite_exp(x: float) -> float | None:
  """None beyond all floats, where the perplexity per word of a text without spaces may lie."""
  return None if math.isinf(_exp(x)) else _exp(x)


def _exp(x: float) -> float:
  return math.exp(x) if x < 700 else math.inf
