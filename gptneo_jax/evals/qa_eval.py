"""Evaluates a model's answers to a file of questions: generation, metrics, an LLM judge."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
from collections.abc import Hashable, Iterable
from typing import Any

from gptneo_jax import engine
from gptneo_jax.cli import progress_bar
from gptneo_jax.errors import UserError
from gptneo_jax.evals import generation_metrics, llm_judge, provenance, qa_file
from gptneo_jax.evals.llm_judge import Judge, Judgement
from gptneo_jax.evals.qa_file import Question
from gptneo_jax.evals.resume_file import ResumeLog
from gptneo_jax.examples import instruction
from gptneo_jax.generation.requests import require_tokenizer


def evaluate(
  lm: engine.LanguageModel | None, path: str, *, judge: str | None = None,
  max_new_tokens: int = 128, batch_size: int = 8, limit: int | None = None, seed: int = 0,
  output: str | None = None,
) -> dict[str, Any]:  # fmt: skip
  """Generates answers to the prompts of a file, with greedy decoding, and scores them.

  A model that was fine-tuned on instructions gets them in its own template.

  Args:
    lm: the model that answers; None where the file has all predictions.
    path: a JSONL file as qa_file.py describes it.
    judge: an additional LLM judge, as `llm_judge.make_judge` takes it.
    batch_size: prompts answered at once.
    limit: only the first `limit` questions.
    seed: of `lm.generate`; greedy answers do not depend on it.
    output: answers and judgements are appended to OUTPUT.answers.jsonl as they are made, and an
      interrupted run resumes from there. Those of other weights, prompts or options are not used.

  Returns:
    metrics: as `generation_metrics.score`; with a judge also judge_score, the mean of its scores,
      and judge_scored and judge_unparsed, the number of answers with and without one.
    per_category: the same for each category.
    samples: prompt, references, prediction and scores of each question.
    settings, judge: what it takes to repeat the evaluation, with the judge's prompt.

  Raises:
    UserError: a bad record, with its file and line; a prompt that does not fit; a judge that fails.
  """
  for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
    if value < 1:
      raise UserError(f"{name} is {value}; it must be 1 or more")
  if limit is not None and limit < 1:
    raise UserError(f"limit is {limit}; it must be 1 or more")
  generation_metrics.bleu_and_rouge()  # raises before hours of answers if they are missing
  questions = list(itertools.islice(qa_file.read(path), limit))
  if not questions:
    raise UserError(f"{path}: no record")
  grader = None if judge is None else llm_judge.make_judge(judge)
  with ResumeLog(None if output is None else f"{output}.answers.jsonl") as log:
    weights = None
    if any(question.prediction is None for question in questions):
      questions, weights = _answer(lm, questions, log, max_new_tokens, batch_size, seed)
    judgements = None if grader is None else _judge(grader, questions, log)
  return _report(questions, judgements) | {
    "settings": {
      "file": path,
      "file_sha256": _file_hash(path),
      "max_new_tokens": max_new_tokens,
      "limit": limit,
      "seed": seed,
      "weights": weights,
    },
    "judge": None if grader is None else grader.description,
  }


def _file_hash(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# --- answers and judgements -----------------------------------------------------------------------


def _key(*parts: Any) -> str:
  """The key of a finished item: a hash of everything that it depends on."""
  text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _answer(
  lm: engine.LanguageModel | None, questions: list[Question], log: ResumeLog, max_new_tokens: int,
  batch_size: int, seed: int,
) -> tuple[list[Question], str]:  # fmt: skip
  """All questions with a prediction, and the hash of the weights that generated those not given.

  Answers that the log lacks are generated in batches of prompts of similar lengths.
  """
  unanswered = [question for question in questions if question.prediction is None]
  if lm is None:
    raise UserError(f'{unanswered[0].location}: there is no "prediction", and no model to make one')
  if not lm.config.has_lm_head:
    raise UserError(f"cannot answer: the model's head is {lm.config.head!r}, not next-token")
  require_tokenizer(lm, "answer")
  weights = provenance.of_model(lm)
  task = lm.task if lm.has_template else None
  used = [] if task is None else [task.settings["template"]]
  key_of = lambda q: _key("answer", weights, max_new_tokens, q.prompt, q.stop_strings, *used)
  by_key = {key_of(question): question for question in unanswered}
  written = lm.prompt_ids if task else lambda text: list(lm.tokenizer(text).input_ids)
  ids = {key: written(question.prompt) for key, question in by_key.items()}
  limit = lm.config.max_position_embeddings
  for key, question in by_key.items():
    if len(ids[key]) + max_new_tokens > limit:
      raise UserError(
        f"{question.location}: a prompt of {len(ids[key])} tokens and {max_new_tokens} new ones are"
        f" {len(ids[key]) + max_new_tokens - limit} more than the model's {limit} positions; lower"
        " max_new_tokens or shorten it"
      )
  todo = [key for key in by_key if key not in log]
  with progress_bar(total=len(by_key), initial=len(by_key) - len(todo), desc="answers") as bar:
    for stop_strings, keys in _grouped(todo, lambda key: by_key[key].stop_strings):
      keys.sort(key=lambda key: len(ids[key]), reverse=True)
      for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        generated = lm.generate(
          [ids[key] for key in batch], seed=seed, max_new_tokens=max_new_tokens,
          stop_strings=list(stop_strings) or None, num_return_sequences=1,
        )  # fmt: skip
        assert generated.texts is not None  # there is a tokenizer: the prompts went through it
        said = [instruction.answer_of(text, task) if task else text for text in generated.texts]
        log.add({key: _cut(text, stop_strings) for key, text in zip(batch, said)})
        bar.update(len(batch))
  answered = [
    q if q.prediction is not None else q._replace(prediction=log[key_of(q)]) for q in questions
  ]
  return answered, weights


def _cut(text: str, stop_strings: tuple[str, ...]) -> str:
  """The text before the first stop string in it."""
  return text[: min((text.find(stop) for stop in stop_strings if stop in text), default=len(text))]


def _judge(judge: Judge, questions: list[Question], log: ResumeLog) -> list[Judgement]:
  """The judgement of each question's prediction; what the log lacks is asked for in threads."""
  keys = [
    _key("judgement", judge.description, q.prompt, q.references, q.prediction) for q in questions
  ]
  todo = {key: q for key, q in zip(keys, questions) if key not in log}

  def grade(question: Question) -> Judgement:
    assert question.prediction is not None
    return judge.grade(question.prompt, " (or) ".join(question.references), question.prediction)

  total = len(set(keys))
  pool = concurrent.futures.ThreadPoolExecutor(judge.max_concurrency)
  with progress_bar(total=total, initial=total - len(todo), desc="judgements") as bar:
    try:
      for key, judgement in zip(todo, pool.map(grade, todo.values())):
        log.add({key: list(judgement)})
        bar.update()
    finally:
      pool.shutdown(cancel_futures=True)
  return [Judgement(*log[key]) for key in keys]


# --- the report -----------------------------------------------------------------------------------


def _report(questions: list[Question], judgements: list[Judgement] | None) -> dict[str, Any]:
  numbers = range(len(questions))

  def metrics(subset: Iterable[int]) -> dict[str, float]:
    subset = list(subset)
    own = [questions[i] for i in subset]
    results = {"count": len(own)} | generation_metrics.score(
      [q.prediction or "" for q in own], [q.references for q in own]
    )
    if judgements is not None:
      given = [judgements[i].score for i in subset]
      scores = [float(score) for score in given if score is not None]
      results |= {"judge_score": generation_metrics.mean(scores)} if scores else {}
      results |= {"judge_scored": len(scores), "judge_unparsed": len(given) - len(scores)}
    return results

  categories = _grouped(
    [i for i in numbers if questions[i].category is not None], lambda i: questions[i].category
  )
  return {
    "metrics": metrics(numbers),
    "per_category": {category: metrics(subset) for category, subset in categories},
    "samples": [_sample(questions[i], judgements[i] if judgements else None) for i in numbers],
  }


def _sample(question: Question, judgement: Judgement | None) -> dict[str, Any]:
  prediction = question.prediction or ""
  sample = {
    "prompt": question.prompt,
    "reference": list(question.references),
    "prediction": prediction,
    "exact_match": generation_metrics.exact_match(prediction, question.references),
    "f1": generation_metrics.f1(prediction, question.references),
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
