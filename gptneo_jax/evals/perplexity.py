"""Loss, perplexity and bits per byte of documents, overall and per subset."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptneo_jax.data import EvaluationBatches


def evaluate(
  row_nll: Callable[[dict[str, np.ndarray]], Any], batches: EvaluationBatches
) -> dict[str, float]:
  """Scores every token of every document once.

  row_nll: summed negative log-likelihood in nats of each row of a batch, B.
  Returns `eval/loss` (nats per token), `eval/perplexity` (its exponential) and
  `eval/bits_per_byte` (by the documents' real UTF-8 bytes), and, where there are several subsets,
  the same with /SUBSET behind. Sums are float64.
  """
  nll_per_document: dict[int, float] = {}
  for batch in batches:
    document_B = batch.pop("row_document")
    for document, nll in zip(document_B, np.asarray(row_nll(batch), np.float64)):
      if document >= 0:
        nll_per_document[document] = nll_per_document.get(document, 0.0) + nll
  documents = {
    subset: [d for d, s in enumerate(batches.subsets) if s == subset]
    for subset in dict.fromkeys(batches.subsets)
  }
  groups = {"": list(range(len(batches.subsets)))}
  if len(documents) > 1:
    groups |= {f"/{subset}": numbers for subset, numbers in documents.items()}
  results = {}
  for suffix, numbers in groups.items():
    nll = sum(nll_per_document.get(d, 0.0) for d in numbers)
    tokens = sum(batches.tokens_per_document[d] for d in numbers)
    size = sum(batches.bytes_per_document[d] for d in numbers)
    if tokens:
      loss = nll / tokens
      results[f"eval/loss{suffix}"] = loss
      results[f"eval/perplexity{suffix}"] = math.exp(loss) if loss < 700 else math.inf
      results[f"eval/bits_per_byte{suffix}"] = nll / (size * math.log(2))
  return results
