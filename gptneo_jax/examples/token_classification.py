"""A label for each word of a sentence: entities as IOB2 tags, or any other labels.

The label of a word is learned and read at its first token; its other tokens count nothing. A
sentence longer than a row becomes windows that share up to examples.stride tokens, in which each
word is labelled once, so that none is lost and data.on_too_long decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax.data import DataError, DocumentEncoder
from gptneo_jax.examples import entity_metrics, iob, labels, sentences
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.sentences import Sentence
from gptneo_jax.examples.task_file import TaskSpec

ROLES = (
  Role("tokens", ("words",), needed="never"),
  Role("labels", ("tags", "ner_tags", "pos_tags"), needed="never"),
  Role("text", ("sentence",), needed="never"),
  Role("entities", ("slots", "spans"), needed="never"),
)
OUTPUTS = "token"
IGNORED = -100  # the label of tokens that do not count


class Window(NamedTuple):
  """Which words of its sentence an example labels, and at which of its tokens."""

  sentence: Sentence
  first: int  # word
  tokens: np.ndarray  # one for each word from there


def layout(spec: TaskSpec) -> dict[str, Column]:
  return {
    "labels": Column("token", np.int32, IGNORED),
    "weights": Column("token", np.float32),
  }


def key(record: Record) -> str:
  tokens = record.fields.get("tokens", record.fields.get("text", ""))
  return tokens if isinstance(tokens, str) else " ".join(map(str, tokens))


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return {}


def settle(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """The spec with the labels: of entities O, then B- and I- of each type; else all, sorted.

  Labels that the config names stay as they are.
  """
  known = sentences.read(records, spec.labels)
  names = [name for one in known for name in one.labels or ()]
  if len(set(names)) < 2:
    raise DataError(
      f"{records[0].location}: " + (f"all {len(names)} labels are {names[0]!r}" if names else
      "no labels") + ", so there is nothing to learn; data.columns says which field holds them"
    )  # fmt: skip
  if spec.labels:
    _check_given(spec.labels)
  elif sentences.uses_tags(known):
    spec = spec.replace(labels=iob.labels({iob.type_of(name) for name in names} - {""}))
  else:
    spec = spec.replace(labels=tuple(sorted(set(names))))
  places = [labels.index(name, one.location, spec) for one in known for name in one.labels or ()]
  counts_C = np.bincount(places, minlength=len(spec.labels))
  return spec.replace(label_weights=labels.class_weights(counts_C, spec))


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  read = sentences.read(records, spec.labels, labelled=labelled)
  pieces = list(dict.fromkeys(itertools.chain.from_iterable(one.pieces() for one in read)))
  ids = dict(zip(pieces, encoder.encode(pieces)))
  examples = []
  for number, one in enumerate(read):
    words = [ids[piece] for piece in one.pieces()]
    if not words:  # an empty text: there must be a token to read
      end = np.array([encoder.end_of_text], np.int32)
      examples.append(_example(number, Window(one, 0, np.zeros(0, int)), end, spec))
      continue
    shared = min(spec.settings["stride"], spec.max_tokens // 2)
    lengths = np.array([len(each) for each in words])
    if lengths.max() > spec.max_tokens:
      word = one.words[int(lengths.argmax())]
      raise DataError(
        f"{one.location}: the word {word[:40]!r} has {lengths.max()} tokens, and a row"
        f" {spec.max_tokens}; raise seq_len"
      )
    for begin, new, end in windows(lengths, spec.max_tokens, shared):
      starts = np.concatenate([[0], lengths[begin : end - 1].cumsum()])
      window = Window(one, new, starts[new - begin :])
      examples.append(_example(number, window, np.concatenate(words[begin:end]), spec))
  return examples


def windows(lengths: np.ndarray, most: int, shared: int) -> list[tuple[int, int, int]]:
  """Parts of at most `most` tokens of a sentence whose words have these lengths.

  Each: its first word, the first that no part before had, and the end. Words before that, of at
  most `shared` tokens, were in the part before.
  """
  ends = np.concatenate([[0], lengths.cumsum()])
  found, begin, new = [], 0, 0
  while True:
    end = int(np.searchsorted(ends, ends[begin] + most, "right")) - 1
    found.append((begin, new, end))
    if end == len(lengths):
      return found
    new = end
    begin = int(np.searchsorted(ends, max(ends[new] - shared, ends[new + 1] - most)))


def predictions(
  outputs: Sequence[np.ndarray], examples: Sequence[Example], spec: TaskSpec
) -> list[dict[str, Any]]:
  """`tokens`, the `labels` and `probabilities` of each, and, where labels are tags, `entities`.

  An entity has its `type` and `text`, `start` and `end` (exclusive) in words, `score`, the mean
  probability of its labels, and of a text `characters`, its start and end there.
  """
  found = []
  for _, group in itertools.groupby(zip(examples, outputs), lambda pair: pair[0].record):
    pairs = list(group)
    sentence = pairs[0][0].extra.sentence
    logits_WxC = np.concatenate([out_TxC[example.extra.tokens] for example, out_TxC in pairs])
    found.append(_prediction(sentence, logits_WxC.astype(np.float64), spec))
  return found


def metrics(
  predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
) -> dict[str, float]:
  """accuracy of words, and f1, precision and recall of entities where labels are tags."""
  true = [one.labels or () for one in sentences.read(records, spec.labels)]
  said = [one["labels"] for one in predictions]
  right = sum(a == b for pair in zip(said, true, strict=True) for a, b in zip(*pair, strict=True))
  found = {"accuracy": right / max(1, sum(map(len, true)))}
  types = dict.fromkeys(iob.type_of(name) for name in spec.labels if iob.is_tag(name))
  return entity_metrics.of_tags(said, true, list(types)) | found if types else found


def _example(number: int, window: Window, ids: np.ndarray, spec: TaskSpec) -> Example:
  labels_T = np.full(len(ids), IGNORED, np.int32)
  weights_T = np.zeros(len(ids), np.float32)
  names = window.sentence.labels
  if names is not None:
    own = names[window.first : window.first + len(window.tokens)]
    places = np.array([labels.index(name, window.sentence.location, spec) for name in own], int)
    labels_T[window.tokens] = places
    weights_T[window.tokens] = np.array(spec.label_weights)[places] if spec.label_weights else 1
  return Example(
    (ids,), {"labels": (labels_T,), "weights": (weights_T,)}, record=number,
    location=window.sentence.location, extra=window,
  )  # fmt: skip


def _prediction(sentence: Sentence, logits_WxC: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
  chance_WxC = np.exp(logits_WxC - logits_WxC.max(-1, keepdims=True))
  best_W = (chance_WxC.max(-1) / chance_WxC.sum(-1)).tolist()
  names = [spec.labels[place] for place in logits_WxC.argmax(-1)]
  said = {"tokens": list(sentence.words), "labels": names, "probabilities": best_W}
  if any(map(iob.is_tag, spec.labels)):
    said["entities"] = [_entity(sentence, one, best_W) for one in iob.entities(names)]
  return said


def _entity(sentence: Sentence, entity: iob.Entity, best_W: Sequence[float]) -> dict[str, Any]:
  said: dict[str, Any] = {
    "type": entity.type, "text": sentence.words_of(entity), "start": entity.start,
    "end": entity.end, "score": float(np.mean(best_W[entity.start : entity.end])),
  }  # fmt: skip
  if sentence.text is not None:
    first, last = sentence.spans[entity.start], sentence.spans[entity.end - 1]
    said["characters"] = [first[0], last[1]]
  return said


def _check_given(labels: Sequence[str]) -> None:
  for name in labels:
    if iob.is_tag(name) and name[0] not in "BI":
      raise DataError(
        f"examples.labels has {name!r}: tags are learned as IOB2, O, B-TYPE and I-TYPE, whatever"
        " scheme the files have"
      )
