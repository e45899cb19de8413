"""Cuts long texts into parts that a tokenizer encodes to the same ids as the text."""

import re
from collections.abc import Callable, Iterator
from typing import Any

# Encoding takes hundreds of bytes a token: a few MB for a part.
PART_CHARACTERS = 1 << 15

# A text can be cut between a character that no version of Unicode calls white space and a space: no
# pre-token of GPT-2's pattern holds both, since white space only begins one. The pattern looks at
# nothing before a pre-token, and past its end only at white space, so neither side depends on the
# other.
_BEFORE_SPACE = re.compile(r"[^\s\u180e\u200b](?=[ \n])")
_BEFORE_BLANK = re.compile(r"[^\s\u180e\u200b](?= )")


def _one_part(text: str) -> Iterator[str]:
  yield text


def make_cutter(backend: Any) -> Callable[[str], Iterator[str]]:
  """A function that cuts a text into parts of about PART_CHARACTERS for this tokenizers.Tokenizer.

  It cuts where the ids of the parts are certainly those of the text: with GPT-2's pre-tokenizer,
  before white space that follows another character. With others it returns the text uncut.
  """
  boundary = _boundary(backend)
  if boundary is None:
    return _one_part

  def parts(text: str) -> Iterator[str]:
    start = 0
    while match := boundary.search(text, start + PART_CHARACTERS):
      yield text[start : match.end()]
      start = match.end()
    yield text[start:]

  return parts


def _boundary(backend: Any) -> re.Pattern | None:
  from tokenizers import normalizers, pre_tokenizers

  words, normalizer = backend.pre_tokenizer, backend.normalizer
  if not isinstance(words, pre_tokenizers.ByteLevel) or not words.use_regex:
    return None
  if normalizer is not None and not isinstance(normalizer, normalizers.NFC):
    return None  # NFC joins nothing to a space
  for token in backend.get_added_tokens_decoder().values():
    # Special ones are ordinary text in documents; the others are found before pre-tokenization.
    if not token.special and (token.rstrip or _BEFORE_SPACE.search(token.content)):
      return None
  # With a prefix space, one is put before each part that does not begin with one.
  return _BEFORE_BLANK if words.add_prefix_space else _BEFORE_SPACE
