"""From ids back to text: what new tokens add to the text of a prompt, at once or as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders that turn each token into text by itself, except for bytes of one character.
_APPENDING = {
  "ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip",
}  # fmt: skip
_HELD_WORDS = 2  # cleaning up spaces joins a word with its neighbours: "don ' t" becomes "don't"


def new_text(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
  """The text that `ids` add to that of a prompt, without special tokens.

  The two are decoded together: decoders may drop the space before the first token of a text, and
  join a token with the one before it.
  """
  before = tokenizer.decode(prompt, skip_special_tokens=True)
  both = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
  return _after(before, both)


def _after(beginning: str, text: str) -> str:
  """A text without the prefix that it has in common with `beginning`."""
  if text.startswith(beginning):
    return text[len(beginning) :]
  return text[next(i for i, (a, b) in enumerate(zip(beginning + "\0", text + "\0")) if a != b) :]


class TextStream:
  """The text of growing ids, in pieces that make up `new_text` when joined.

  What later tokens may still change is held back: a character whose bytes are not all there, and,
  where the decoder cleans up spaces, the last words.
  """

  def __init__(self, tokenizer: Any, prompt: Sequence[int]):
    self._tokenizer, self._prompt = tokenizer, list(prompt)
    # Adjacent byte tokens are decoded together, across special tokens: the text of such a run may
    # change until it ends.
    self._in_run = set(byte_tokens(tokenizer))
    if self._in_run:
      self._in_run |= set(tokenizer.all_special_ids)
    types = set(_types(_decoder(tokenizer)))
    self._rewrites = tokenizer.clean_up_tokenization_spaces or not types <= _APPENDING
    self._shown = ""

  def push(self, ids: Sequence[int], finished: bool) -> str:
    """The next piece of text; `ids` are all new ids so far."""
    if finished:
      text = new_text(self._tokenizer, self._prompt, ids)
    else:
      text = self._settled(ids)
      if not text.startswith(self._shown):
        return ""
    piece = _after(self._shown, text)
    self._shown = text if len(text) > len(self._shown) else self._shown
    return piece

  def _settled(self, ids: Sequence[int]) -> str:
    end = len(ids)
    while end and ids[end - 1] in self._in_run:
      end -= 1
    text = new_text(self._tokenizer, self._prompt, ids[:end]).rstrip("�")
    if not self._rewrites:
      return text
    words = list(re.finditer(r"\S+", text))
    return text[: words[-_HELD_WORDS - 1].end()] if len(words) > _HELD_WORDS else ""


def byte_tokens(tokenizer: Any) -> dict[int, int]:
  """The byte of each token that is written as one, such as <0xE7>, by id."""
  if "ByteFallback" not in _types(_decoder(tokenizer)):
    return {}
  found = ((i, _BYTE_TOKEN.fullmatch(token)) for token, i in tokenizer.get_vocab().items())
  return {i: int(match[1], 16) for i, match in found if match}


def token_bytes(tokenizer: Any) -> list[bytes]:
  """The UTF-8 bytes of each token, by id; with byte-level BPE they may be parts of characters.

  Ids without a token have none.
  """
  vocabulary = tokenizer.get_vocab()
  spelled = [b""] * (max(vocabulary.values()) + 1)
  byte_level = "ByteLevel" in _types(_decoder(tokenizer))
  alphabet, single_bytes = _byte_alphabet(), byte_tokens(tokenizer)
  for token, i in vocabulary.items():
    if i in single_bytes:
      spelled[i] = bytes([single_bytes[i]])
    elif byte_level and all(character in alphabet for character in token):
      spelled[i] = bytes(alphabet[character] for character in token)
    else:
      # Decode the token twice and take the second: the first of a text may lose its space.
      both, one = (tokenizer.decode(ids) for ids in ([i, i], [i]))
      spelled[i] = both[len(one) :].encode() if both.startswith(one) else one.encode()
  return spelled


def _byte_alphabet() -> dict[str, int]:
  """The characters by which byte-level BPE writes bytes: printable ones as they are, others from
  U+0100 on."""
  shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [byte for byte in range(256) if byte not in shown]
  return {chr(b): b for b in shown} | {chr(0x100 + n): b for n, b in enumerate(hidden)}


def _decoder(tokenizer: Any) -> dict[str, Any] | None:
  decoder = tokenizer.backend_tokenizer.decoder
  return None if decoder is None else json.loads(decoder.__getstate__())


def _types(decoder: dict[str, Any] | None) -> list[str]:
  """The types of a decoder and of its parts; ['None'] for no decoder."""
  if decoder is None:
    return ["None"]
  inner = [kind for part in decoder.get("decoders", []) for kind in _types(part)]
  return [decoder["type"], *inner]
