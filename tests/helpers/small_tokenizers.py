"""A text, documents of it, and a tokenizer trained on them."""

import functools

from gptneo_jax.data.documents import Document
from gptneo_jax.data.tokenizer import load_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Olá, mundo: ação e coração. " * 30


def documents_of(*texts: str) -> list[Document]:
  return [Document(text, "s", "f:1") for text in texts]


@functools.cache
def trained_tokenizer(vocab_size: int = 320):
  """The same object for all tests of a process: one that changes it must undo the change."""
  documents = documents_of(TEXT, TEXT.upper())
  return load_tokenizer("train", documents=documents, vocab_size=vocab_size)
