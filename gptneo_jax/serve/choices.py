"""Rows as the choices of an answer: each one whole, or chunk after chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

from gptneo_jax.generation.continuous import Row
from gptneo_jax.serve import answers, schemas
from gptneo_jax.serve.answers import AnswerText, Tokens
from gptneo_jax.serve.chat_prompts import ChatPrompts
from gptneo_jax.serve.jobs import Job, Update


class Wording(NamedTuple):
  """How the model's ids are written."""

  tokenizer: Any
  tokens: Tokens
  chat: ChatPrompts


class ChoiceWriter:
  """Writes one row of a job, in the form that its body is answered in. Used once, either way."""

  def __init__(self, wording: Wording, job: Job, number: int):
    self._wording, self._job, self._number = wording, job, number
    self._is_chat = isinstance(job.body, schemas.Chat)
    prompt, text = job.rows[number].ids_BxW[0].tolist(), job.texts[number // job.each]
    self._reader = AnswerText(wording.tokenizer, prompt, job.stops)
    self._echo = text if job.echo else ""
    self._offset = 0 if job.echo else len(text)  # characters before the next token
    self._scored = 0  # tokens whose log-probabilities have been written
    self._all, self._answer = "", ""  # text of a chat so far, and the answer that is in it

  def whole(self, row: Row, index: int) -> dict[str, Any]:
    """A row that has ended, as choice number `index`."""
    update = Update(self._number, row, len(row.new), row.ended)
    text = self._text(update)
    choice = {
      "index": index,
      "logprobs": self._logprobs(update),
      "finish_reason": self._finish_reason(update),
    }
    if not self._is_chat:
      return choice | {"text": text}
    content = self._wording.chat.answer(text)
    return choice | {"message": {"role": "assistant", "content": content, "refusal": None}}

  def chunks(self, update: Update) -> list[dict[str, Any]]:
    """What is new of the row, unless its text has to wait for what comes after it."""
    text = self._text(update)
    if not (text or update.ended):
      return []
    logprobs, finish = self._logprobs(update), self._finish_reason(update)
    if not self._is_chat:
      return [chunk(self._number, text=text, logprobs=logprobs, finish_reason=finish)]
    self._all += text
    answer = self._wording.chat.answer(self._all)
    new, self._answer = answer[len(self._answer) :], answer
    made = []
    if new or (logprobs and logprobs["content"]):
      made.append(chunk(self._number, delta={"content": new}, logprobs=logprobs))
    if finish:
      made.append(chunk(self._number, delta={}, finish_reason=finish))
    return made

  def _text(self, update: Update) -> str:
    text = self._echo + self._reader.push(update.row.new[: update.count], bool(update.ended))
    self._echo = ""
    return text

  def _logprobs(self, update: Update) -> dict[str, Any] | None:
    alternatives, row = self._job.body.alternatives, update.row
    if alternatives is None:
      return None
    whole = self._job.echo and not self._scored
    scored = answers.scored_prompt(row, alternatives) if whole else []
    scored += answers.scored_new(row, self._scored, update.count, alternatives)
    self._scored = update.count
    if self._is_chat:
      return answers.chat_logprobs(self._wording.tokens, scored)
    logprobs = answers.completion_logprobs(self._wording.tokens, scored, self._offset)
    self._offset += sum(map(len, logprobs["tokens"]))
    return logprobs

  def _finish_reason(self, update: Update) -> str | None:
    return answers.finish_reason(update.ended, self._reader.stopped) if update.ended else None


def chunk(index: int, **fields: Any) -> dict[str, Any]:
  """A choice of a streamed answer."""
  return {"index": index, "logprobs": None, "finish_reason": None} | fields
