"""The answer of a question as a span of a context, or that there is none (SQuAD v1.1 and v2.0).

A sequence is the question, a line break, the context, and the end of text. Attention is causal, so
the context is read with the question in mind; the end of text has seen everything, and is what both
ends of an answer point at where there is none. (BERT-like models point at their first token, which
here has seen nothing.) A context too long for a row becomes windows that share examples.stride
tokens, each with the whole question; one without the answer is learned as having none. Of a
question that leaves its context no room data.on_too_long decides: truncate_left takes its end, of
half a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptneo_jax.data import DataError, DocumentEncoder
from gptneo_jax.examples import squad_metrics
from gptneo_jax.examples.columns import Role
from gptneo_jax.examples.packing import Column, Example
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.examples.too_long import TooLong

ROLES = (
  Role("question", ("query",)),
  Role("context", ("passage", "paragraph", "text")),
  Role("answers", ("answer",), needed="training"),
  Role("id", ("question_id",), needed="never"),
  Role("is_impossible", needed="never"),
)
OUTPUTS = "token"
SEPARATOR = "\n"
N_BEST = 5  # answers of a prediction


class Answer(NamedTuple):
  """A true answer and its first character in the context."""

  text: str
  start: int


class Window(NamedTuple):
  """Which tokens of its context an example has.

  prefix: tokens before them, of the question and the separator. first: the first of the context's.
  offsets_Nx2: characters of all tokens of the context.
  """

  id: Any
  context: str
  prefix: int
  first: int
  offsets_Nx2: np.ndarray


def layout(spec: TaskSpec) -> dict[str, Column]:
  return {
    "starts": Column("position", np.int32),
    "ends": Column("position", np.int32),
    "weights": Column("sequence", np.float32),
  }


def key(record: Record) -> str:
  """The context: questions about one that was learned from are no test."""
  return str(record.fields["context"])


def added_tokens(spec: TaskSpec) -> dict[str, str]:
  return {}


def settle(records: Sequence[Record], spec: TaskSpec) -> TaskSpec:
  """The spec with the setting `unanswerable`: whether there are questions without an answer."""
  for name in ("class_weights", "label_smoothing"):
    if spec.settings.get(name):
      raise DataError(f"{name} is of labels, and an answer's places are none")
  there = [answers_of(record) for record in records]
  if not any(there):
    raise DataError(f"{records[0].location}: none of the {len(records)} questions has an answer")
  return spec.replace(settings={**spec.settings, "unanswerable": not all(there)})


def encode(
  records: Sequence[Record], spec: TaskSpec, encoder: DocumentEncoder, *, labelled: bool
) -> list[Example]:
  questions = encoder.encode([_text(record, "question") for record in records])
  contexts = list(dict.fromkeys(_text(record, "context") for record in records))
  encoded = dict(zip(contexts, encoder.encode_with_offsets(contexts)))
  (separator,) = encoder.encode([SEPARATOR])
  examples, long = [], TooLong(spec)
  for number, (record, question) in enumerate(zip(records, questions)):
    context_ids, offsets_Nx2 = encoded[record.fields["context"]]
    prefix = np.concatenate([question, separator])
    if len(prefix) + 2 > spec.max_tokens:
      if not long.keeps(_location(record), len(prefix) + 2):
        continue
      prefix = prefix[-(spec.max_tokens // 2) :]
    room = spec.max_tokens - len(prefix) - 1
    span = None
    if labelled and (answers := answers_of(record)):
      span = token_span(offsets_Nx2, answers[0].start, answers[0].start + len(answers[0].text))
    for first, last in windows(len(context_ids), room, spec.settings["stride"]):
      ids = np.concatenate([prefix, context_ids[first:last], [encoder.end_of_text]])
      places = (len(ids) - 1,) * 2
      if span is not None and first <= span[0] and span[1] < last:
        places = (span[0] - first + len(prefix), span[1] - first + len(prefix))
      fields = record.fields
      name = number if fields.get("id") in (None, "") else fields["id"]
      window = Window(name, fields["context"], len(prefix), first, offsets_Nx2)
      values = {"starts": places[:1], "ends": places[1:], "weights": (1.0 * labelled,)}
      examples.append(
        Example(
          (ids.astype(np.int32),), values=values, record=number, location=record.location,
          extra=window,
        )
      )  # fmt: skip
  return long.finish(examples)


def windows(count: int, room: int, shared: int) -> list[tuple[int, int]]:
  """First and end of each window of `count` tokens; neighbours share `shared`, at most half."""
  step = room - min(shared, room // 2)
  firsts = range(0, max(1, count - room + step), step)
  return [(first, min(first + room, count)) for first in firsts]


def token_span(offsets_Nx2: np.ndarray, start: int, end: int) -> tuple[int, int]:
  """The first and the last token that have some of the characters start to end (exclusive)."""
  first = int(np.searchsorted(offsets_Nx2[:, 1], start, "right"))
  last = int(np.searchsorted(offsets_Nx2[:, 0], end, "left")) - 1
  return first, last


def answers_of(record: Record) -> list[Answer]:
  """The true answers; [] where there is none. Raises DataError for one not in the context."""
  given = record.fields.get("answers")
  if record.fields.get("is_impossible") or given is None:
    return []
  if isinstance(given, dict) and isinstance(given.get("text"), list):  # as `datasets` has them
    given = [
      {"text": text, "answer_start": start}
      for text, start in zip(given["text"], given.get("answer_start", ()), strict=False)
    ]
  found = []
  for one in given if isinstance(given, list | tuple) else [given]:
    try:
      answer = Answer(one["text"], one["answer_start"])
    except (TypeError, KeyError):
      answer = Answer("", -1)
    if not isinstance(answer.text, str) or not isinstance(answer.start, int):
      answer = Answer("", -1)
    found.append(_checked(answer, one, record))
  return found


def _checked(answer: Answer, given: Any, record: Record) -> Answer:
  context = _text(record, "context")
  if not answer.text.strip():
    raise DataError(
      f"{_location(record)}: an answer is {given!r}; it has a text and an answer_start, and a"
      " question without an answer has []"
    )
  end = answer.start + len(answer.text)
  if answer.start < 0 or context[answer.start : end] != answer.text:
    there = context[max(0, answer.start) : max(0, end)]
    raise DataError(
      f"{_location(record)}: the answer {answer.text[:60]!r} is not at character {answer.start} of"
      f" its context: there is {there[:60]!r}"
    )
  return answer


def predictions(
  outputs: Sequence[np.ndarray], examples: Sequence[Example], spec: TaskSpec
) -> list[dict[str, Any]]:
  """Of each question its `id`, `answer`, `start` and `end` in characters (end exclusive).

  A span's score is the sum of its two logits less that of no answer in the same window: so spans of
  different windows, whose logits have no common zero, can be compared. A span in several windows
  has the best of its scores. `probability` is the softmax over all spans of at most
  examples.max_answer_tokens and no answer, whose score is 0 and whose probability is
  `no_answer_probability`. `no_answer_score` is how much better no answer scores than the best span;
  the answer is '' where that is more than examples.no_answer_threshold, if training had questions
  without answer. `n_best` has the best spans.
  """
  found = []
  for _, group in itertools.groupby(zip(examples, outputs), lambda pair: pair[0].record):
    pairs = list(group)
    scores_NxM = _scores(pairs, spec.settings["max_answer_tokens"])
    found.append(_prediction(pairs[0][0].extra, scores_NxM, spec))
  return found


def _scores(pairs: Sequence[tuple[Example, np.ndarray]], longest: int) -> np.ndarray:
  """Of each token of the context and each length of an answer from there; -inf past the end."""
  N = len(pairs[0][0].extra.offsets_Nx2)
  scores_NxM = np.full((N, max(1, min(longest, N))), -np.inf)
  for example, outputs_Tx2 in pairs:
    window, outputs_Tx2 = example.extra, outputs_Tx2.astype(np.float64)
    none = outputs_Tx2[-1].sum()
    start_W, end_W = outputs_Tx2[window.prefix : -1].T
    for m in range(min(scores_NxM.shape[1], len(start_W))):
      count = len(start_W) - m
      own = scores_NxM[window.first : window.first + count, m]
      np.maximum(own, start_W[:count] + end_W[m:] - none, out=own)
  return scores_NxM


def _prediction(window: Window, scores_NxM: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
  best = scores_NxM.max(initial=0.0)
  total = np.exp(scores_NxM - best).sum() + np.exp(-best)
  none = float(np.exp(-best) / total)
  spans = _best_spans(window, scores_NxM)
  n_best = [
    {
      "answer": window.context[start:end], "start": start, "end": end,
      "probability": float(np.exp(score - best) / total),
    }
    for (start, end), score in spans.items()
  ]  # fmt: skip
  no_answer_score = -next(iter(spans.values())) if spans else None
  if no_answer_score is not None and (
    no_answer_score <= spec.settings["no_answer_threshold"]
    or not spec.settings.get("unanswerable", True)
  ):
    said = {"id": window.id, **n_best[0]}
  else:
    said = {"id": window.id, "answer": "", "start": None, "end": None, "probability": none}
  return said | {
    "no_answer_probability": none, "no_answer_score": no_answer_score, "n_best": n_best
  }  # fmt: skip


def _best_spans(window: Window, scores_NxM: np.ndarray) -> dict[tuple[int, int], float]:
  """Characters of the best answers with their scores, the best first."""
  spans: dict[tuple[int, int], float] = {}
  for place in np.argsort(-scores_NxM, axis=None, kind="stable"):
    first, m = divmod(int(place), scores_NxM.shape[1])
    if len(spans) == N_BEST or scores_NxM[first, m] == -np.inf:
      break
    start, end = _characters(window, first, first + m)
    if start < end:  # parts of one character give the same span again
      spans.setdefault((start, end), float(scores_NxM[first, m]))
  return spans


def _characters(window: Window, first: int, last: int) -> tuple[int, int]:
  """Start and end of tokens first to last in the context, without the white space around them."""
  start, end = int(window.offsets_Nx2[first, 0]), int(window.offsets_Nx2[last, 1])
  text = window.context[start:end]
  return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def metrics(
  predictions: Sequence[dict[str, Any]], records: Sequence[Record], spec: TaskSpec
) -> dict[str, float]:
  """exact_match and f1, from 0 to 1; more where some questions have no answer.

  has_answer_exact_match, has_answer_f1 and no_answer_accuracy are those of the questions with and
  without; best_exact_match and best_f1 are what the best threshold would give, which is beside
  them.
  """
  true = [[answer.text for answer in answers_of(record)] for record in records]
  said = [one["answer"] for one in predictions]
  exact_N, f1_N = (
    np.array([function(a, b) for a, b in zip(said, true, strict=True)])
    for function in (squad_metrics.exact_match, squad_metrics.f1)
  )
  found = {"exact_match": float(exact_N.mean()), "f1": float(f1_N.mean())}
  has_N = np.array([bool(each) for each in true])
  if has_N.all():
    return found
  found["no_answer_accuracy"] = float(exact_N[~has_N].mean())
  if has_N.any():
    found["has_answer_exact_match"] = float(exact_N[has_N].mean())
    found["has_answer_f1"] = float(f1_N[has_N].mean())
  return found | _best(predictions, true, has_N)


def _best(
  predictions: Sequence[dict[str, Any]], true: Sequence[Sequence[str]], has_N: np.ndarray
) -> dict[str, float]:
  """What the best thresholds of no_answer_score would make of exact match and F1."""
  scores_N = np.array([one["no_answer_score"] if one["n_best"] else np.inf for one in predictions])
  answers = [one["n_best"][0]["answer"] if one["n_best"] else "" for one in predictions]
  found = {}
  for name, function in (("exact_match", squad_metrics.exact_match), ("f1", squad_metrics.f1)):
    worths_N = np.array([function(a, b) for a, b in zip(answers, true)])
    best, threshold = squad_metrics.best_threshold(scores_N, worths_N, has_N)
    found |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
  return found


def _text(record: Record, role: str) -> str:
  text = record.fields.get(role)
  if not isinstance(text, str):
    raise DataError(f"{_location(record)}: the {role} is {text!r}, not a text")
  return text


def _location(record: Record) -> str:
  """'file:line', and the question's id where it has one."""
  name = record.fields.get("id")
  if name is None or record.location.endswith(f"question {name}"):
    return record.location
  return f"{record.location}: question {name}"
