"""Columns of words and tags, as CoNLL's shared tasks write them: IOB2, UniversalNER's, WNUT's.

A line is a token, a blank line ends a sentence. Columns are separated by tabs, or else by white
space. The token is the first column, or the second where the first counts the tokens; the tag is
the last column of which every value is a tag of entities (O, B-PER), or else the last one.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gptneo_jax.data import BadRecords

ENDINGS = (".conll", ".iob2", ".iob", ".bio", ".bioes")
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_DOCUMENT = "-DOCSTART-"
_LOOKED_AT = 200  # lines that show what a file is


class _Line(NamedTuple):
  number: int
  columns: list[str]


def looks_like(data: bytes) -> bool:
  """Whether each line of the beginning of a file is a token with a tag, a comment or blank."""
  beginning = data[: 1 << 16].decode("utf-8", "replace").split("\n")[:_LOOKED_AT]
  if len(beginning) < _LOOKED_AT:
    beginning = beginning[:-1] or beginning  # the last may be cut
  found = [line.columns for sentence in _blocks(beginning) for line in sentence]
  tags = [column for column in list(zip(*found))[1:] if all(map(_TAG.fullmatch, column))]
  return bool(tags) and all(len(columns) >= 2 for columns in found)


def sentences(
  data: bytes, name: str, bad_records: BadRecords
) -> Iterator[tuple[str, dict[str, Any]]]:
  """(location, fields) of each sentence: its columns as '0', '1', …, and as `tokens` and `labels`.

  A file of one column has no labels.
  """
  blocks = list(_blocks(data.decode("utf-8", "surrogateescape").split("\n")))
  widths = collections.Counter(len(line.columns) for block in blocks for line in block)
  width = max(widths, key=widths.__getitem__, default=0)
  lines = [(n, line.columns) for block in blocks for n, line in enumerate(block, 1)]
  full = [(n, columns) for n, columns in lines if len(columns) == width]
  tag = _tag_column([columns for _, columns in full], width)
  token = _token_column(full, width)
  for block in blocks:
    other = next((line for line in block if len(line.columns) != width), None)
    if other is not None:
      number = len(other.columns)
      bad_records.add(
        f"{name}:{other.number}", f"{number} column{'s'[: number != 1]} in a file of {width}"
      )
      continue
    columns = [list(column) for column in zip(*(line.columns for line in block))]
    fields = {str(number): column for number, column in enumerate(columns)}
    fields["tokens"] = columns[token]
    if tag > token:
      fields["labels"] = columns[tag]
    yield f"{name}:{block[0].number}", fields


def _blocks(lines: Sequence[str]) -> Iterator[list[_Line]]:
  """The tokens of each sentence."""
  block: list[_Line] = []
  tabs = any("\t" in line for line in lines[:_LOOKED_AT])
  for number, line in enumerate(lines, 1):
    line = line.removesuffix("\r")
    if not line.strip() or line.startswith(_DOCUMENT):
      if block:
        yield block
      block = []
    elif not _is_comment(line, tabs):
      columns = line.split("\t") if tabs else line.split()
      block.append(_Line(number, [column.strip() for column in columns]))
  if block:
    yield block


def _is_comment(line: str, tabs: bool) -> bool:
  """Whether a line that begins with # is no token."""
  if not line.startswith("# "):
    return False
  return "\t" not in line if tabs else not _TAG.fullmatch(line.split()[-1])


def _token_column(lines: Sequence[tuple[int, list[str]]], width: int) -> int:
  """1 where the first column is the number of each token in its sentence, else 0."""
  counts = width > 1 and all(columns[0] == str(number) for number, columns in lines)
  # Two columns of numbers and tags are tokens that happen to be numbers.
  return int(counts and not _are_tags([columns for _, columns in lines], 1))


def _tag_column(lines: Sequence[list[str]], width: int) -> int:
  """The last column of tags of entities, else the last one."""
  return next((n for n in reversed(range(width)) if _are_tags(lines, n)), width - 1)


def _are_tags(lines: Sequence[list[str]], column: int) -> bool:
  return all(_TAG.fullmatch(columns[column]) for columns in lines)
