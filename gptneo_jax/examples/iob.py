"""Entities as tags of tokens: the schemes that files use, read as IOB2.

IOB2: B- begins an entity, I- continues it, O is outside. IOB1 begins with I- where no entity of the
type has just ended; IOBES (BILOU) ends with E- (L-) and marks single tokens by S- (U-). One rule
reads them all, conlleval's of CoNLL-2000, which also takes what a model says as it may come: an I-
after another type begins an entity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


class Entity(NamedTuple):
  """Tokens start to end (exclusive) of one type."""

  type: str
  start: int
  end: int


def is_tag(tag: str) -> bool:
  """Whether it is a tag of these schemes other than O."""
  return _TAG.fullmatch(tag) is not None


def type_of(tag: str) -> str:
  """The type of a tag, '' of O."""
  return tag[2:] if is_tag(tag) else ""


def entities(tags: Sequence[str]) -> list[Entity]:
  """What the tags of a sentence mark, in any of the schemes."""
  found: list[Entity] = []
  before, open_type = OUTSIDE, ""  # the prefix of the tag before, and the type that it is of
  for n, tag in enumerate(tags):
    prefix, type_ = (tag[0], tag[2:]) if is_tag(tag) else (OUTSIDE, "")
    if type_:
      if prefix in "BSU" or before in "OESLU" or type_ != open_type:
        found.append(Entity(type_, n, n + 1))
      else:
        found[-1] = found[-1]._replace(end=n + 1)
    before, open_type = prefix, type_
  return found


def tags(marked: Iterable[Entity], length: int) -> list[str]:
  """IOB2 tags of a sentence of `length` tokens; the entities do not overlap."""
  found = [OUTSIDE] * length
  for type_, start, end in marked:
    found[start:end] = [f"B-{type_}", *[f"I-{type_}"] * (end - start - 1)]
  return found


def labels(types: Iterable[str]) -> tuple[str, ...]:
  """Every tag of IOB2: O first, then B- and I- of each type, sorted by type."""
  return (OUTSIDE, *(f"{prefix}-{type_}" for type_ in sorted(types) for prefix in "BI"))
