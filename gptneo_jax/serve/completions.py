"""Requests for completions and chats: from a body to rows for the device, and to the answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import jax

from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.generation import requests
from gptneo_jax.generation.continuous import Row, Wanted
from gptneo_jax.generation.decode import GenerationRequest
from gptneo_jax.generation.requests import Prompts
from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.serve import answers, schemas
from gptneo_jax.serve.answers import Tokens
from gptneo_jax.serve.batching import Closed, Generator, QueueFull
from gptneo_jax.serve.chat_prompts import ChatPrompts
from gptneo_jax.serve.choices import ChoiceWriter, Wording, chunk
from gptneo_jax.serve.errors import ApiError, of_user_error, too_long
from gptneo_jax.serve.jobs import Job, Update

_GONE = 0.5  # seconds between two looks at whether the client is still there


class Completions:
  """Makes jobs of bodies and answers of jobs. model_name: what answers say that they are of."""

  def __init__(self, lm: LanguageModel, generator: Generator, model_name: str):
    self._lm, self._generator, self._name = lm, generator, model_name
    self._tokenizer = requests.require_tokenizer(lm, "serve completions")
    self._chat = ChatPrompts(lm)
    tokens = Tokens(self._tokenizer, lm.config.vocab_size)
    self._wording = Wording(self._tokenizer, tokens, self._chat)

  # --- from a body to a job -----------------------------------------------------------------------

  def job(self, body: schemas.Completion) -> Job:
    """Raises ApiError."""
    prompts, texts = self._prompts(body.prompt)
    best_of = body.best_of or body.n
    if best_of < body.n:
      raise ApiError(400, f"best_of is {best_of}, less than n, {body.n}", param="best_of")
    if best_of > body.n and body.stream:
      raise ApiError(400, "the best of several is known at the end: it is not streamed",
                     param="best_of")  # fmt: skip
    wanted = Wanted(
      logprobs=body.logprobs is not None or best_of > body.n,
      prompt_logprobs=body.echo and body.logprobs is not None,
      kept=not body.echo,
    )
    rows = [
      row for ids in prompts for row in self._rows(body, ids, body.max_tokens, best_of, "prompt")
    ]
    return Job(body, prompts, texts, rows, wanted, best_of, body.n, body.stops, body.echo)

  def chat_job(self, body: schemas.Chat) -> Job:
    """Raises ApiError."""
    messages = [message.plain(number) for number, message in enumerate(body.messages)]
    try:
      ids = self._chat.ids(messages)
    except UserError as error:
      raise ApiError(400, str(error), param="messages") from None
    room = self._lm.config.max_position_embeddings - len(ids)
    new = body.max_completion_tokens or body.max_tokens or max(room, 1)
    stops = [*body.stops, *self._chat.stops]
    body = body.model_copy(update={"stop": stops})
    wanted = Wanted(logprobs=body.logprobs, kept=True)
    rows = self._rows(body, ids, new, body.n, "messages")
    return Job(body, [ids], [""], rows, wanted, body.n, body.n, stops, False)

  def _prompts(self, prompt: Any) -> tuple[list[list[int]], list[str]]:
    """Ids and texts of each."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
      prompt = [prompt]
    if not prompt:
      raise ApiError(400, "there is no prompt", param="prompt")
    try:
      rows = requests.read_prompts(self._lm, prompt, None, "prompt").rows
    except UserError as error:
      raise ApiError(400, str(error).removeprefix("generate: "), param="prompt") from None
    texts = [one if isinstance(one, str) else self._tokenizer.decode(one) for one in prompt]
    return rows, texts

  def _rows(
    self, body: schemas.Common, ids: list[int], new: int, count: int, param: str
  ) -> list[GenerationRequest]:
    limit = self._lm.config.max_position_embeddings
    if len(ids) + new > limit:
      raise too_long(limit, len(ids), new, param)
    defaults = self._lm.generation_config
    try:
      options = GenerationOptions.from_dict(body.options(dict(defaults), new), defaults)
      seed = secrets.randbits(32) if body.seed is None else body.seed % 2**32
      made = 1 << (count - 1).bit_length()  # few sizes: keys are made by a program for each
      prompts = Prompts([ids] * made, len(ids))
      with jax.set_mesh(self._lm.mesh):
        request = requests.make_request(self._lm, prompts, options, seed)
        rows = [requests.row_of(request, b) for b in range(count)]
    except UserError as error:
      raise of_user_error(error, schemas.FIELDS) from None
    # A stop string is looked for in the new text alone.
    return [row._replace(new_tokens=new, stop_state_B=None) for row in rows]

  # --- running it ---------------------------------------------------------------------------------

  async def updates(self, job: Job, gone: Callable[[], Awaitable[bool]]) -> AsyncGenerator[Update]:
    """What happens to the rows, until all have ended; leaving it early cancels them.

    Of an answer that is not streamed only the ends: each call of the loop takes Python's lock from
    the thread that has the device. gone: says whether the client has left. Raises ApiError.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()

    def listener(number: int, row: Row) -> None:
      if job.body.stream or row.ended:
        loop.call_soon_threadsafe(queue.put_nowait, Update(number, row, len(row.new), row.ended))

    try:
      cancel = self._generator.submit(job.rows, job.wanted, listener)
    except QueueFull:
      raise ApiError(429, "too many requests are waiting; try again later") from None
    except Closed:
      raise ApiError(503, "the server is shutting down") from None
    left = len(job.rows)
    try:
      while left:
        try:
          async with asyncio.timeout(_GONE):
            update = await queue.get()
        except TimeoutError:
          if await gone():
            return
          continue
        if update.ended in ("cancelled", "fault"):
          raise self._fault(update)
        left -= bool(update.ended)
        yield update
    finally:
      if left:
        cancel()

  def _fault(self, update: Update) -> ApiError:
    if update.ended == "cancelled":
      return ApiError(503, "the server has been shut down before the answer was complete")
    return ApiError(500, "the model's numbers are not finite, or no token is left to choose")

  async def answer(self, job: Job, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any] | None:
    """The whole answer; None if the client has left."""
    rows: dict[int, Row] = {}
    async for update in self.updates(job, gone):
      if update.ended:
        rows[update.number] = update.row
    if len(rows) < len(job.rows):
      return None
    choices = []
    for prompt in range(len(job.prompts)):
      numbers = range(prompt * job.each, (prompt + 1) * job.each)
      for number in self._best(job, rows, numbers):
        writer = ChoiceWriter(self._wording, job, number)
        choices.append(writer.whole(rows[number], len(choices)))
    first_rows = [rows[prompt * job.each] for prompt in range(len(job.prompts))]
    all_rows = [rows[number] for number in range(len(job.rows))]
    return {
      **self._head(job, streamed=False),
      "choices": choices,
      "usage": answers.usage(first_rows, all_rows),
    }

  def _best(self, job: Job, rows: dict[int, Row], numbers: Sequence[int]) -> Sequence[int]:
    """The n likeliest of these rows, by the mean log-probability of their tokens."""
    if job.each == job.n:
      return numbers

    def mean(number: int) -> float:
      row = rows[number]
      return sum(float(one.logprob_N) for one in row.logprobs) / max(len(row.new), 1)

    return sorted(numbers, key=mean, reverse=True)[: job.n]

  # --- streams ------------------------------------------------------------------------------------

  async def events(
    self, job: Job, first: Update | None, rest: AsyncGenerator[Update],
    used: Callable[[dict[str, Any]], object],
  ) -> AsyncIterator[str]:  # fmt: skip
    """Server-sent events of a streamed answer.

    first: the update that has been awaited already. used: called with the tokens at the end.
    """
    head, chat = self._head(job, streamed=True), isinstance(job.body, schemas.Chat)
    writers = [ChoiceWriter(self._wording, job, number) for number in range(len(job.rows))]
    options = job.body.stream_options
    ended: dict[int, Row] = {}
    usage = {"usage": None} if options and options.include_usage else {}
    try:
      for number in range(len(job.rows)):
        if chat:
          delta = {"role": "assistant", "content": ""}
          yield _event(head | {"choices": [chunk(number, delta=delta)]} | usage)
      update = first
      while update is not None:
        for choice in writers[update.number].chunks(update):
          yield _event(head | {"choices": [choice]} | usage)
        if update.ended:
          ended[update.number] = update.row
        update = await anext(rest, None)
      rows = [ended[number] for number in sorted(ended)]
      made = answers.usage(rows[:: job.each], rows)
      used(made)
      if usage:
        yield _event(head | {"choices": [], "usage": made})
    except ApiError as error:
      yield _event(error.body)
    finally:
      await rest.aclose()
    yield "data: [DONE]\n\n"

  def _head(self, job: Job, streamed: bool) -> dict[str, Any]:
    chat = isinstance(job.body, schemas.Chat)
    kind = "chat.completion" if chat else "text_completion"
    if chat and streamed:
      kind += ".chunk"
    return {
      "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
      "object": kind,
      "created": int(time.time()),
      "model": self._name,
    }


def _event(body: dict[str, Any]) -> str:
  return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
