"""What texts go through before they are encoded, if it is asked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from gptneo_jax.data.documents import DataError

KINDS = ("none", "nfc", "ftfy", "original")
# Control characters but tab and line feed, and the byte order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff]")

# WikiText's way of spacing, undone: the replacements of EleutherAI/gpt-neo's data/encoders.py and
# of lm-evaluation-harness' wikitext task, in their order.
_SPACED = (
  *((f" @{sign}@ ", sign) for sign in "-,."),
  *((f" {sign} ", f"{sign} ") for sign in ":;.!?,"),
)
_ENCLOSED = tuple(
  (re.compile(rf"\{left}\s*([^\{right}]*?)\s*\{right}"), rf"{left}\1{right}")
  for left, right in ("()", "[]", "{}", '""', "''")
)
_OTHERS = (
  *(("=" + " =" * more, "=" * (more + 1)) for more in (3, 2, 1)),
  (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def cleaner(kind: str) -> Callable[[str], str] | None:
  """The function of a name of KINDS; None for 'none'. Raises DataError if it needs ftfy."""
  if kind in ("none", "nfc"):
    return nfc if kind == "nfc" else None
  try:
    import ftfy
  except ImportError:
    raise DataError(f"--clean {kind} needs ftfy: pip install 'gptneo_jax[prepare]'") from None
  if kind == "ftfy":
    return ftfy.fix_text
  return lambda text: wikitext_detokenized(ftfy.fix_text(text, normalization="NFKC"))


def nfc(text: str) -> str:
  """Unicode's composed form, line feeds as ends of lines, no control characters."""
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  return unicodedata.normalize("NFC", _CONTROLS.sub("", text))


def wikitext_detokenized(text: str) -> str:
  text = text.replace("s '", "s'")
  text = re.sub("/' [0-9]/", "/'[0-9]/", text)  # as it stands there
  for spaced, joined in _SPACED:
    text = text.replace(spaced, joined)
  for enclosed, joined in _ENCLOSED:
    text = enclosed.sub(joined, text)
  for spaced, joined in _OTHERS:
    text = text.replace(spaced, joined)
  return text
