"""A tokenizer learned from text."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gptneo_jax.data.documents import DataError, Document

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 20_000_000  # text that a tokenizer is learned from; more changes little
# The trainer's time grows with the square of a stretch without spaces; GPT-2's longest token: 128.
STRETCH_BYTES = 256


def learn(documents: Iterable[Document], vocab_size: int) -> Any:
  """Byte-level BPE as in GPT-2; the end of text is id 0, being the trainer's first entry.

  Says on standard error what it learns from. Raises DataError: no text, or too few entries.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors, trainers
  from transformers import PreTrainedTokenizerFast

  alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: no text is unknown
  if vocab_size <= len(alphabet):
    raise DataError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs 257 or more")
  backend = tokenizers.Tokenizer(models.BPE())
  words = pre_tokenizers.ByteLevel(add_prefix_space=False)
  stretches = pre_tokenizers.FixedLength(STRETCH_BYTES)  # letters are bytes by now
  backend.pre_tokenizer = pre_tokenizers.Sequence([words, stretches])
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=sorted(alphabet),
    show_progress=sys.stderr.isatty(),
  )
  sample = list(_sample(documents))
  if not sample:
    raise DataError("there is no training text to learn a tokenizer from")
  print(
    f"learning a tokenizer of {vocab_size} entries from {len(sample)} documents,"
    f" {sum(map(len, sample)) / 1e6:.1f} million characters",
    file=sys.stderr,
  )
  backend.train_from_iterator(sample, trainer, length=len(sample))
  backend.pre_tokenizer = words
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
  )


def _sample(documents: Iterable[Document]) -> Iterator[str]:
  size = 0
  for document in documents:
    text = document.text[: SAMPLE_BYTES - size]
    yield text
    size += len(text.encode())
    if size >= SAMPLE_BYTES:
      return
