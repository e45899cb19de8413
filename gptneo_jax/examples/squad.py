"""Questions of a file as SQuAD 1.1 and 2.0 have them: {"data": [{"paragraphs": […]}]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from gptneo_jax.data import BadRecords


def holds_questions(data: Any) -> TypeGuard[list[Any]]:
  """Whether the field `data` of a file is SQuAD's."""
  return isinstance(data, list) and any(
    isinstance(one, dict) and "paragraphs" in one for one in data
  )


def questions(
  data: list[Any], name: str, bad_records: BadRecords
) -> Iterator[tuple[str, dict[str, Any]]]:
  """(location, record) of each question, with the fields of the hub's data sets.

  id, question, context, title, is_impossible, and answers, {"text": […], "answer_start": […]},
  where the file has them. Raises DataError naming the question or the paragraph.
  """
  for number, article in enumerate(data, 1):
    location = f"{name}: article {number}"
    for place, paragraph in enumerate(_list(article, "paragraphs", location, bad_records), 1):
      inner = f"{location}, paragraph {place}"
      if not isinstance(paragraph, dict) or not isinstance(paragraph.get("context"), str):
        bad_records.add(inner, "no context")
        continue
      for order, question in enumerate(_list(paragraph, "qas", inner, bad_records), 1):
        fields = _fields(question)
        if fields is None:
          bad_records.add(
            f"{inner}, question {order}", "not a question of SQuAD", _advice(question)
          )
          continue
        title = article.get("title", "")
        yield (
          f"{name}: question {fields['id'] or f'{number}.{place}.{order}'}",
          {**fields, "context": paragraph["context"], "title": title},
        )


def _list(value: Any, key: str, location: str, bad_records: BadRecords) -> list[Any]:
  found = value.get(key) if isinstance(value, dict) else None
  if isinstance(found, list):
    return found
  bad_records.add(location, f"no list of {key}")
  return []


def _fields(question: Any) -> dict[str, Any] | None:
  """None if it is not as SQuAD has it."""
  if not isinstance(question, dict) or not isinstance(question.get("question"), str):
    return None
  fields: dict[str, Any] = {
    "id": str(question.get("id", "")),
    "question": question["question"],
    "is_impossible": bool(question.get("is_impossible", False)),
  }
  answers = question.get("answers")
  if answers is not None:
    if not isinstance(answers, list) or not all(map(_is_answer, answers)):
      return None
    fields["answers"] = {
      key: [answer[key] for answer in answers] for key in ("text", "answer_start")
    }
  return fields


def _is_answer(answer: Any) -> bool:
  return (
    isinstance(answer, dict)
    and isinstance(answer.get("text"), str)
    and isinstance(answer.get("answer_start"), int)
  )


def _advice(question: Any) -> str:
  if not isinstance(question, dict):
    return f"it is a {type(question).__name__}"
  if not isinstance(question.get("question"), str):
    return "it has no text `question`"
  return "`answers` is a list of objects with `text` and `answer_start`"
