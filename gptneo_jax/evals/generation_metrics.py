"""Generated answers against references: exact match, F1, BLEU, ROUGE, a judge's scores."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import json
import os
import re
import string
from collections.abc import Hashable, Iterable, Sequence
from typing import IO, Any

from gptneo_jax import engine
from gptneo_jax.cli import progress_bar
from gptneo_jax.errors import UserError
from gptneo_jax.evals import llm_judge as judges
from gptneo_jax.evals import provenance
from gptneo_jax.evals.qa_file import Question, read
from gptneo_jax.generation.requests import require_tokenizer

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_REPEATED = 4  # words in a row that may not come twice


# --- measures -------------------------------------------------------------------------------------


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
  """Measures of predictions; each has one or more references, of which the best counts.

  Against the references: exact_match and f1, 0 to 1, of words as SQuAD normalises them (lower case,
  without punctuation and the articles a, an, the; Rajpurkar et al. 2016); bleu, 0 to 100, of the
  corpus (sacrebleu, its standard 13a tokens); rouge1, rouge2, rougeL, 0 to 1, F-measures
  (rouge_score, without stemming: it sees only the letters a to z and digits).
  Of the predictions alone, words standing between white space: distinct_1, _2, _3, the share of
  different n-grams among all (Li et al. 2016); repetition_4, the share of a text's 4-grams that
  stand in it before (Welleck et al. 2020), and longest_repeat, the words of the longest run that
  comes twice, both means over texts; mean_words. What no text is long enough for is left out.

  Raises:
    UserError: the libraries are not installed, or there is no prediction.
  """
  if not predictions:
    raise UserError("no answer to score")
  bleu, rouge = _libraries()
  rouge_rows = [rouge.score_multi(list(own), text) for own, text in zip(references, predictions)]
  most = max(map(len, references))
  streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
  return {
    "exact_match": _mean(exact_match(*pair) for pair in zip(predictions, references)),
    "f1": _mean(f1(*pair) for pair in zip(predictions, references)),
    "bleu": bleu.corpus_score(list(predictions), streams).score,
    **{
      name: _mean(float(row[name].fmeasure) for row in rouge_rows)
      for name in ("rouge1", "rouge2", "rougeL")
    },
    **_free_text([text.split() for text in predictions]),
  }


def exact_match(prediction: str, references: Sequence[str]) -> float:
  own = _squad_words(prediction)
  return float(any(own == _squad_words(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
  """Harmonic mean of the words' precision and recall, for the best reference."""
  return max(_f1(_squad_words(prediction), _squad_words(reference)) for reference in references)


def _f1(own: list[str], reference: list[str]) -> float:
  if not own or not reference:  # nothing to say, and it was, or was not, said
    return float(own == reference)
  common = (collections.Counter(own) & collections.Counter(reference)).total()
  return 2 * common / (len(own) + len(reference))


def _squad_words(text: str) -> list[str]:
  return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _free_text(texts: list[list[str]]) -> dict[str, float]:
  measures = {}
  for n in (1, 2, 3):
    found = [ngram for words in texts for ngram in _ngrams(words, n)]
    if found:
      measures[f"distinct_{n}"] = len(set(found)) / len(found)
  found_in = [ngrams for words in texts if (ngrams := _ngrams(words, _REPEATED))]
  if found_in:
    measures[f"repetition_{_REPEATED}"] = _mean(1 - len(set(x)) / len(x) for x in found_in)
  measures["longest_repeat"] = _mean(float(_longest_repeat(words)) for words in texts)
  measures["mean_words"] = _mean(float(len(words)) for words in texts)
  return measures


def _longest_repeat(words: list[str]) -> int:
  """Words of the longest run that stands at two places, which may overlap."""
  low, high = 0, max(len(words) - 1, 0)
  while low < high:  # where a run comes twice, its beginning does
    middle = (low + high + 1) // 2
    ngrams = _ngrams(words, middle)
    low, high = (middle, high) if len(set(ngrams)) < len(ngrams) else (low, middle - 1)
  return low


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
  return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _mean(values: Iterable[float]) -> float:
  values = list(values)
  return sum(values) / len(values)


def _libraries() -> tuple[Any, Any]:
  """BLEU and ROUGE."""
  try:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
  except ImportError as error:
    raise UserError(
      f"answers need {error.name}, which is not installed: pip install 'gptneo_jax[eval]'"
    ) from None
  return BLEU(), RougeScorer(["rouge1", "rouge2", "rougeL"])


# --- runs -----------------------------------------------------------------------------------------


def run(
  lm: engine.LanguageModel | None, path: str, *, judge: str | None = None,
  max_new_tokens: int = 128, batch_size: int = 8, limit: int | None = None, seed: int = 0,
  output: str | None = None,
) -> dict[str, Any]:  # fmt: skip
  """Answers the prompts of a file greedily, and scores what is said.

  Args:
    lm: who answers; None where the predictions stand in the file.
    path: JSON lines, as questions.py describes them.
    judge: who judges beside, as `judge.make_judge` takes it.
    batch_size: prompts answered at once.
    limit: only so many, the first.
    seed: of `lm.generate`; greedy answers do not depend on it.
    output: answers and judgements are kept in OUTPUT.answers.jsonl as they are made, and a run that
      was interrupted goes on from there. What was made by other weights, or from other prompts or
      options, is not taken.

  Returns:
    metrics (see `score`; with a judge, judge_score, the mean of those it gave, judge_scored and
    judge_unparsed, how many have one and how many have none), the same in per_category, samples,
    and what it takes to repeat it: settings, and the judge with its prompt.

  Raises:
    UserError: a bad record, with file and line; a prompt that does not fit; a judge that fails.
  """
  for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
    if value < 1:
      raise UserError(f"{name} is {value}; it must be 1 or more")
  if limit is not None and limit < 1:
    raise UserError(f"limit is {limit}; it must be 1 or more")
  _libraries()  # if they are missing, that is known before hours of answers
  questions = list(itertools.islice(read(path), limit))
  if not questions:
    raise UserError(f"{path}: no record")
  by = None if judge is None else judges.make_judge(judge)
  with _Kept(output) as kept:
    weights = None
    if any(question.prediction is None for question in questions):
      questions, weights = _answer_all(lm, questions, kept, max_new_tokens, batch_size, seed)
    judgements = None if by is None else _judge_all(by, questions, kept)
  return _report(questions, judgements) | {
    "settings": {
      "file": path,
      "file_sha256": _file_hash(path),
      "max_new_tokens": max_new_tokens,
      "limit": limit,
      "seed": seed,
      "weights": weights,
    },
    "judge": None if by is None else by.description,
  }


def _file_hash(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# --- answers and judgements -----------------------------------------------------------------------


class _Kept:
  """Finished work by key: on disk in OUTPUT.answers.jsonl, if there is an OUTPUT."""

  def __init__(self, output: str | None):
    self._path = None if output is None else f"{output}.answers.jsonl"
    self._values: dict[str, Any] = {}

  def __enter__(self) -> _Kept:
    self._file: IO[bytes] | None = None
    if self._path is not None:
      try:
        self._file = open(self._path, "a+b")
        self._read(self._file)
      except OSError as error:
        raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
      except UserError:
        self.__exit__()
        raise
    return self

  def __exit__(self, *_) -> None:
    if self._file is not None:
      self._file.close()

  def _read(self, file: IO[bytes]) -> None:
    file.seek(0)
    whole = 0
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):  # the run ended while it was written
        file.truncate(whole)
        break
      whole += len(line)
      try:
        entry = json.loads(line)
        self._values[entry["key"]] = entry["value"]
      except (ValueError, TypeError, KeyError):
        raise UserError(
          f"{self._path}:{number}: not an answer that was kept; remove the file to begin again"
        ) from None

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def __getitem__(self, key: str) -> Any:
    return self._values[key]

  def add(self, values: dict[str, Any]) -> None:
    self._values.update(values)
    if self._file is not None:
      rows = [{"key": key, "value": value} for key, value in values.items()]
      self._file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
      self._file.flush()
      os.fsync(self._file.fileno())


def _key(*parts: Any) -> str:
  text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _answer_all(
  lm: engine.LanguageModel | None, questions: list[Question], kept: _Kept, max_new_tokens: int,
  batch_size: int, seed: int,
) -> tuple[list[Question], str]:  # fmt: skip
  """All questions with a prediction, and the hash of the weights that made those not given.

  What is not kept yet is made, in batches of like lengths.
  """
  asked = [question for question in questions if question.prediction is None]
  if lm is None:
    raise UserError(f'{asked[0].where}: there is no "prediction", and no model to make one')
  if not lm.config.has_lm_head:
    raise UserError(f"cannot answer: the model's head is {lm.config.head!r}, not next-token")
  require_tokenizer(lm, "answer")
  weights = provenance.of_model(lm)
  key_of = lambda q: _key("answer", weights, max_new_tokens, q.prompt, q.stops)  # noqa: E731
  todo = {key_of(question): question for question in asked}
  ids = {key: list(lm.tokenizer(question.prompt).input_ids) for key, question in todo.items()}
  limit = lm.config.max_position_embeddings
  for key, question in todo.items():
    if len(ids[key]) + max_new_tokens > limit:
      raise UserError(
        f"{question.where}: a prompt of {len(ids[key])} tokens and {max_new_tokens} new ones are"
        f" {len(ids[key]) + max_new_tokens - limit} more than the model's {limit} positions; lower"
        " max_new_tokens or shorten it"
      )
  rest = [key for key in todo if key not in kept]
  with progress_bar(total=len(todo), initial=len(todo) - len(rest), desc="answers") as bar:
    for stops, keys in _grouped(rest, lambda key: todo[key].stops):
      keys.sort(key=lambda key: len(ids[key]), reverse=True)
      for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        made = lm.generate(
          [ids[key] for key in batch], seed=seed, max_new_tokens=max_new_tokens,
          stop_strings=list(stops) or None, num_return_sequences=1,
        )  # fmt: skip
        assert made.texts is not None  # there is a tokenizer: the prompts went through it
        kept.add({key: _cut(text, stops) for key, text in zip(batch, made.texts)})
        bar.update(len(batch))
  answered = [
    q if q.prediction is not None else q._replace(prediction=kept[key_of(q)]) for q in questions
  ]
  return answered, weights


def _cut(text: str, stops: tuple[str, ...]) -> str:
  """The text before the first stop in it."""
  return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _judge_all(
  judge: judges.Judge, questions: list[Question], kept: _Kept
) -> list[judges.Judgement]:
  keys = [
    _key("judgement", judge.description, q.prompt, q.references, q.prediction) for q in questions
  ]
  todo = {key: q for key, q in zip(keys, questions) if key not in kept}

  def grade(question: Question) -> judges.Judgement:
    assert question.prediction is not None
    return judge.grade(question.prompt, " (or) ".join(question.references), question.prediction)

  total = len(set(keys))
  pool = concurrent.futures.ThreadPoolExecutor(judge.at_once)
  with progress_bar(total=total, initial=total - len(todo), desc="judgements") as bar:
    try:
      for key, judgement in zip(todo, pool.map(grade, todo.values())):
        kept.add({key: list(judgement)})
        bar.update()
    finally:
      pool.shutdown(cancel_futures=True)
  return [judges.Judgement(*kept[key]) for key in keys]


# --- the report -----------------------------------------------------------------------------------


def _report(questions: list[Question], judgements: list[judges.Judgement] | None) -> dict[str, Any]:
  numbers = range(len(questions))

  def measures(some: Iterable[int]) -> dict[str, float]:
    some = list(some)
    own = [questions[i] for i in some]
    results = {"count": len(own)} | score(
      [q.prediction or "" for q in own], [q.references for q in own]
    )
    if judgements is not None:
      given = [judgements[i].score for i in some]
      scores = [float(s) for s in given if s is not None]
      results |= {"judge_score": _mean(scores)} if scores else {}
      results |= {"judge_scored": len(scores), "judge_unparsed": len(given) - len(scores)}
    return results

  categories = _grouped(
    [i for i in numbers if questions[i].category is not None], lambda i: questions[i].category
  )
  return {
    "metrics": measures(numbers),
    "per_category": {category: measures(some) for category, some in categories},
    "samples": [_sample(questions[i], judgements[i] if judgements else None) for i in numbers],
  }


def _sample(question: Question, judgement: judges.Judgement | None) -> dict[str, Any]:
  prediction = question.prediction or ""
  sample = {
    "prompt": question.prompt,
    "reference": list(question.references),
    "prediction": prediction,
    "exact_match": exact_match(prediction, question.references),
    "f1": f1(prediction, question.references),
  }
  if question.category is not None:
    sample["category"] = question.category
  if judgement is not None:
    sample |= {"judge_score": judgement.score, "judge_explanation": judgement.explanation}
  return sample


def _grouped(values: Iterable[Any], by: Any) -> list[tuple[Any, list[Any]]]:
  """Values with the same `by`, in order of first appearance."""
  groups: dict[Hashable, list[Any]] = {}
  for value in values:
    groups.setdefault(by(value), []).append(value)
  return list(groups.items())
