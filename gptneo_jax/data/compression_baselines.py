"""Bits per byte that a model must beat: those of byte frequencies and of gzip."""

import gzip
from collections.abc import Iterable

import numpy as np

from gptneo_jax.data.documents import Document


def byte_unigram_bits_per_byte(
  train_documents: Iterable[Document], eval_documents: Iterable[Document]
) -> float:
  """Cross-entropy per byte under the byte frequencies of `train_documents`, add-one smoothed."""
  seen = _byte_counts(train_documents) + 1
  counts = _byte_counts(eval_documents)
  return float(-(counts * np.log2(seen / seen.sum())).sum() / counts.sum())


def gzip_bits_per_byte(eval_documents: Iterable[Document]) -> float:
  """Bits of gzip -9 per byte of text, each document compressed by itself."""
  compressed = total = 0
  for document in eval_documents:
    data = document.text.encode()
    compressed += len(gzip.compress(data, compresslevel=9))
    total += len(data)
  return 8 * compressed / total


def _byte_counts(documents: Iterable[Document]) -> np.ndarray:
  counts = np.zeros(256, np.int64)
  for document in documents:
    counts += np.bincount(np.frombuffer(document.text.encode(), np.uint8), minlength=256)
  return counts
