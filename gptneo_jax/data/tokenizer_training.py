"""Training a tokenizer on text."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gptneo_jax.data.documents import DataError, Document

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 20_000_000  # of text that is read; more changes little
# Text without spaces is cut into words of this length, since the trainer's time grows with the
# square of a word's. GPT-2's longest token has 128 bytes.
MAX_WORD_BYTES = 256


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Any:
  """Byte-level BPE as GPT-2's; the end of text is id 0, the trainer's first entry.

  Prints to standard error how much text it is trained on. Raises DataError for no text, or for too
  few entries.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors, trainers
  from transformers import PreTrainedTokenizerFast

  alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes, so that every text has ids
  if vocab_size <= len(alphabet):
    raise DataError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs 257 or more")
  backend = tokenizers.Tokenizer(models.BPE())
  words = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bounded = pre_tokenizers.FixedLength(MAX_WORD_BYTES)  # a character is a byte at this point
  backend.pre_tokenizer = pre_tokenizers.Sequence([words, bounded])
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
    raise DataError("there is no training text to train a tokenizer on")
  print(
    f"training a tokenizer of {vocab_size} entries on {len(sample)} documents,"
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
