"""Where a long text can be cut, so that its parts have the ids that the whole has."""

import re
from collections.abc import Callable, Iterator
from typing import Any

# Of what the library keeps for a token while it encodes, hundreds of bytes, a part is a few MB.
PART = 1 << 15  # characters

# Between a character that no version of Unicode calls white space and a space: no pre-token of
# GPT-2's pattern holds both, for white space only begins one. The pattern looks at nothing before a
# pre-token, and past its end only where that is white space, so neither side depends on the other.
_BEFORE_SPACE = re.compile(r"[^\s\u180e\u200b](?=[ \n])")
_BEFORE_BLANK = re.compile(r"[^\s\u180e\u200b](?= )")


def whole(text: str) -> Iterator[str]:
  """The text in one part."""
  yield text


def cutter(backend: Any) -> Callable[[str], Iterator[str]]:
  """What cuts a text into parts of about PART characters for this tokenizers.Tokenizer.

  It cuts where it is certain that the ids of the parts are together those of the text: for GPT-2's
  pre-tokenizer, before a white space that follows another character. For others it does not cut.
  """
  place = _cutting_place(backend)
  if place is None:
    return whole

  def parts(text: str) -> Iterator[str]:
    start = 0
    while match := place.search(text, start + PART):
      yield text[start : match.end()]
      start = match.end()
    yield text[start:]

  return parts


def _cutting_place(backend: Any) -> re.Pattern | None:
  from tokenizers import normalizers, pre_tokenizers

  words, normalizer = backend.pre_tokenizer, backend.normalizer
  if not isinstance(words, pre_tokenizers.ByteLevel) or not words.use_regex:
    return None
  if normalizer is not None and not isinstance(normalizer, normalizers.NFC):
    return None  # NFC joins nothing to a space
  for token in backend.get_added_tokens_decoder().values():
    # Special ones are ordinary text in documents; others are found before anything else is done.
    if not token.special and (token.rstrip or _BEFORE_SPACE.search(token.content)):
      return None
  # A space is put before a text, and so before a part, that does not begin with one.
  return _BEFORE_BLANK if words.add_prefix_space else _BEFORE_SPACE
