"""Sentences of token classification: tokens with tags, or a text with spans of characters.

What is read, all of a record's fields by role:

  tokens ["EU", "rejects"], labels ["B-ORG", "O"] · labels may be class numbers, of the names in
  examples.labels · text "EU rejects", entities [{"start": 0, "end": 2, "label": "ORG"}] or
  {"ORG": {"span": [0, 2]}}

Tags of IOB1 and IOBES become IOB2. Labels none of which is such a tag, such as parts of speech, are
taken as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gptneo_jax.data import DataError
from gptneo_jax.examples import iob
from gptneo_jax.examples.records import Record

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Sentence:
  """One record.

  Attributes:
    words: its tokens, or the words and the marks of its text.
    labels: of each, by name; None where it is not labelled.
    text: its text, None where the record has tokens.
    spans: of each word its characters in the text, start and end (exclusive).
    location: 'file:line', for messages.
  """

  words: tuple[str, ...]
  labels: tuple[str, ...] | None
  text: str | None
  spans: tuple[tuple[int, int], ...]
  location: str

  def pieces(self) -> list[str]:
    """What is encoded for each word: the word after a space, or as it stands in the text.

    A word has the same ids wherever it stands, the beginning of a sentence included: those of a
    word in the middle of a text, which transformers gives with add_prefix_space. The ids of each
    piece are its word's alone.
    """
    if self.text is None:
      return [f" {word}" for word in self.words]
    ends = [0, *(end for _, end in self.spans)]
    return [
      word if before == start > 0 else f" {word}"
      for word, before, (start, _) in zip(self.words, ends, self.spans)
    ]

  def words_of(self, entity: iob.Entity) -> str:
    """The text of an entity."""
    if self.text is None:
      return " ".join(self.words[entity.start : entity.end])
    return self.text[self.spans[entity.start][0] : self.spans[entity.end - 1][1]]


def read(
  records: Sequence[Record], names: Sequence[str] = (), *, labelled: bool = True
) -> list[Sentence]:
  """The sentences of records, of one labelling.

  names: of class numbers. labelled: False does not look at the labels.
  Raises DataError.
  """
  sentences = [_sentence(record, names, labelled) for record in records]
  return _as_iob2(sentences) if labelled and uses_tags(sentences) else sentences


def uses_tags(sentences: Sequence[Sentence]) -> bool:
  """Whether their labels mark entities. Raises DataError where only some of them are such tags."""
  tagged = other = None
  for sentence in sentences:
    for label in sentence.labels or ():
      if iob.is_tag(label):
        tagged = tagged or label
      elif label != iob.OUTSIDE:
        other = other or (sentence, label)
      if tagged and other:
        raise DataError(
          f"{other[0].location}: the label {other[1]!r} is neither O nor a tag such as"
          f" {tagged!r} elsewhere"
        )
  return tagged is not None


def _as_iob2(sentences: Sequence[Sentence]) -> list[Sentence]:
  return [
    dataclasses.replace(one, labels=tuple(iob.tags(iob.entities(one.labels), len(one.labels))))
    if one.labels is not None
    else one
    for one in sentences
  ]


def _sentence(record: Record, names: Sequence[str], labelled: bool) -> Sentence:
  if "tokens" in record.fields:
    words = _tokens(record)
    labels = _labels(record, names, len(words)) if labelled else None
    return Sentence(words, labels, None, (), record.location)
  text = record.fields.get("text")
  if not isinstance(text, str):
    raise DataError(f"{record.location}: no tokens and no text; data.columns says which field is")
  spans = tuple(match.span() for match in _WORD.finditer(text))
  words = tuple(text[start:end] for start, end in spans)
  labels = tuple(_labels_of_spans(record, text, spans)) if labelled else None
  return Sentence(words, labels, text, spans, record.location)


def _tokens(record: Record) -> tuple[str, ...]:
  tokens = record.fields["tokens"]
  if isinstance(tokens, str):
    tokens = tokens.split()
  if not isinstance(tokens, list | tuple) or not all(isinstance(one, str) for one in tokens):
    raise DataError(f"{record.location}: tokens are {tokens!r}, not a list of texts")
  for number, token in enumerate(tokens, 1):
    if not token.strip():
      raise DataError(f"{record.location}: token {number} is empty")
  return tuple(tokens)


def _labels(record: Record, names: Sequence[str], count: int) -> tuple[str, ...]:
  labels = record.fields.get("labels")
  if labels is None:
    raise DataError(f"{record.location}: no labels; data.columns=labels=FIELD says which field is")
  if isinstance(labels, str) and not labels.startswith("["):  # a list in a table's quotes
    labels = labels.split()
  if not isinstance(labels, list | tuple):
    raise DataError(
      f"{record.location}: labels are {labels!r}, neither a list nor words with spaces between them"
    )
  if len(labels) != count:
    raise DataError(f"{record.location}: {count} tokens and {len(labels)} labels")
  return tuple(_name(record, label, names) for label in labels)


def _name(record: Record, label: Any, names: Sequence[str]) -> str:
  if isinstance(label, str):
    return label
  if not isinstance(label, int):
    raise DataError(f"{record.location}: the label {label!r} is neither a text nor a class number")
  if not names:
    raise DataError(
      f"{record.location}: labels are class numbers, such as {label}; say their names, in order:"
      " --config.examples.labels=\"('O','B-…','I-…')\""
    )
  if not 0 <= label < len(names):
    raise DataError(f"{record.location}: the label {label} is none of the {len(names)} classes")
  return names[label]


def _labels_of_spans(record: Record, text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
  """IOB2 tags of the words that the record's entities touch."""
  marked: list[iob.Entity] = []
  for type_, start, end in sorted(_entities(record), key=lambda entity: entity[1:]):
    if not 0 <= start < end <= len(text):
      raise DataError(
        f"{record.location}: the entity {type_!r} has characters {start} to {end}, and the text has"
        f" {len(text)}"
      )
    words = [n for n, (first, last) in enumerate(spans) if first < end and start < last]
    if not words:
      raise DataError(f"{record.location}: the entity {type_!r} at {start} to {end} has no word")
    if marked and words[0] < marked[-1].end:
      raise DataError(
        f"{record.location}: the entities {marked[-1].type!r} and {type_!r} overlap, and a word has"
        " one label"
      )
    marked.append(iob.Entity(type_, words[0], words[-1] + 1))
  return iob.tags(marked, len(spans))


def _entities(record: Record) -> Iterator[tuple[str, int, int]]:
  """Type, start and end of each entity; none where the field is not there."""
  found = record.fields.get("entities") or []
  if isinstance(found, dict):
    found = [{"label": name, **entity} for name, entity in found.items()]
  for entity in found:
    try:
      start, end = entity["span"] if "span" in entity else (entity["start"], entity["end"])
      type_ = next(entity[name] for name in ("label", "type", "entity") if name in entity)
    except (TypeError, ValueError, KeyError, StopIteration):
      raise DataError(
        f"{record.location}: the entity {entity!r} has not the form"
        ' {"label": …, "start": …, "end": …}'
      ) from None
    if not isinstance(start, int) or not isinstance(end, int):
      raise DataError(
        f"{record.location}: the entity {type_!r} has no whole numbers for characters"
      )
    yield str(type_), start, end
