"""Encodes with gigatoken where it is installed and gives the ids of `tokenizers`.

gigatoken (github.com/marcelroed/gigatoken, MIT) is many times as fast, and young: the first
documents of every shard are encoded by both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptneo_jax.data.tokenizer import DocumentEncoder

_CHECKED = 64  # documents of a shard


class CheckedEncoder:
  """Ids of documents, those of DocumentEncoder.

  say: called with a line if gigatoken is given up.
  """

  def __init__(self, tokenizer: Any, say: Callable[[str], object]):
    self.exact = DocumentEncoder(tokenizer)
    self._say = say
    self._fast = _gigatoken(tokenizer)
    # gigatoken takes their spelling in a text for the tokens.
    self._special = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    self._unchecked = 0  # documents of the shard that both are still to encode

  def begin_shard(self) -> None:
    self._unchecked = _CHECKED

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, without end of text. Raises DataError."""
    if self._fast is None:
      return self.exact.encode(texts)
    checked = min(self._unchecked, len(texts))
    self._unchecked -= checked
    exact = [
      number for number, text in enumerate(texts)
      if number < checked or any(token in text for token in self._special)
    ]  # fmt: skip
    found = dict(zip(exact, self.exact.encode([texts[number] for number in exact])))
    fast = [n for n, text in enumerate(texts) if not any(token in text for token in self._special)]
    try:
      for number, ids in zip(fast, self._fast([texts[number] for number in fast])):
        if number in found and not np.array_equal(ids, found[number]):
          raise ValueError("other ids than tokenizers")
        found.setdefault(number, ids)
    except Exception as error:  # whatever it raises, there is another way
      self._say(f"gigatoken is not used any more: {error}")
      self._fast = None
      return self.exact.encode(texts)
    return [found[number] for number in range(len(texts))]


def _gigatoken(tokenizer: Any) -> Callable[[list[str]], list[np.ndarray]] | None:
  """What encodes with it, or None: not installed, or it does not know this kind of tokenizer."""
  try:
    import gigatoken

    encoder = gigatoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())
  except Exception:
    return None
  return lambda texts: [
    np.asarray(ids, np.int32) for ids in encoder.encode_batch_list(texts, parallel=False)
  ]
