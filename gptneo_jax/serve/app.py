"""The HTTP face: routes, access, limits, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import fastapi
import starlette.exceptions
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from gptneo_jax.data import DataError
from gptneo_jax.engine import LanguageModel
from gptneo_jax.errors import UserError
from gptneo_jax.generation import prediction
from gptneo_jax.serve import schemas
from gptneo_jax.serve.batching import Closed, Generator
from gptneo_jax.serve.completions import Completions, Job
from gptneo_jax.serve.errors import ApiError
from gptneo_jax.serve.metrics import Metrics
from gptneo_jax.serve.pages import add_pages

_log = logging.getLogger(__name__)
# Without a key: for those who watch the server, and the page, which asks for it.
_OPEN = ("/health", "/metrics", "/", "/about")


class Limits(NamedTuple):
  """body: bytes of a request. inputs: texts or records that one may classify."""

  body: int = 8 << 20
  inputs: int = 256


class Service(NamedTuple):
  """What is served: a model, the thread that owns its device, and under which name and key."""

  lm: LanguageModel
  generator: Generator
  name: str
  api_key: str | None = None
  cors: tuple[str, ...] = ()
  limits: Limits = Limits()


def make_app(service: Service) -> fastapi.FastAPI:
  app = fastapi.FastAPI(
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[fastapi.Depends(_key_check(service))],
  )
  metrics = Metrics(service.generator)
  app.add_middleware(_Measured, metrics=metrics)
  if service.cors:
    app.add_middleware(
      CORSMiddleware, allow_origins=list(service.cors), allow_methods=["*"], allow_headers=["*"]
    )
  _handle_errors(app)
  _add_common(app, service, metrics)
  if service.lm.config.has_lm_head:
    _add_completions(app, service, metrics)
  else:
    _add_classify(app, service)
  add_pages(app, service.lm, service.name, service.api_key is not None)
  return app


# --- errors, access, limits -----------------------------------------------------------------------


def _failure(error: ApiError) -> JSONResponse:
  headers = {"Retry-After": "1"} if error.status == 429 else None
  return JSONResponse(error.body, error.status, headers)


def _handle_errors(app: fastapi.FastAPI) -> None:
  @app.exception_handler(ApiError)
  async def api_error(request: fastapi.Request, error: ApiError) -> JSONResponse:
    return _failure(error)

  @app.exception_handler(starlette.exceptions.HTTPException)
  async def http_error(
    request: fastapi.Request, error: starlette.exceptions.HTTPException
  ) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _failure(ApiError(error.status_code, message))

  @app.exception_handler(Exception)
  async def bug(request: fastapi.Request, error: Exception) -> JSONResponse:
    _log.exception("%s %s failed", request.method, request.url.path)
    return _failure(ApiError(500, f"the server failed: {type(error).__name__}"))


def _key_check(service: Service) -> Callable[[fastapi.Request], None]:
  def check(request: fastapi.Request) -> None:
    key = service.api_key
    if key is None or request.url.path in _OPEN:
      return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
      raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

  return check


class _Measured:
  """ASGI: counts answers, and the time to their beginning."""

  def __init__(self, app: Any, metrics: Metrics):
    self._app, self._metrics = app, metrics

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    began = time.monotonic()

    async def noted(message: Any) -> None:
      if message["type"] == "http.response.start":
        self._metrics.answered(scope, message["status"], time.monotonic() - began)
      await send(message)

    await self._app(scope, receive, noted)


async def _body(request: fastapi.Request, limits: Limits) -> Any:
  """The JSON of a request. Raises ApiError."""
  read = bytearray()
  async for piece in request.stream():
    read += piece
    if len(read) > limits.body:
      raise ApiError(413, f"the body has more than {limits.body} bytes")
  try:
    return json.loads(read, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from None


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is no number of JSON")


# --- routes ---------------------------------------------------------------------------------------


def _add_common(app: fastapi.FastAPI, service: Service, metrics: Metrics) -> None:
  model = {
    "id": service.name,
    "object": "model",
    "created": int(time.time()),
    "owned_by": "gptneo_jax",
    "max_model_len": service.lm.config.max_position_embeddings,
  }

  @app.get("/v1/models")
  async def models() -> dict[str, Any]:
    return {"object": "list", "data": [model]}

  @app.get("/v1/models/{name:path}")
  async def one_model(name: str) -> dict[str, Any]:
    _check_model(service, name)
    return model

  @app.get("/health")
  async def health() -> dict[str, Any]:
    if service.generator.failed:
      raise ApiError(503, f"the device has failed: {type(service.generator.failed).__name__}")
    return {"status": "ok", "compiled": service.generator.compiled}

  @app.get("/metrics")
  async def prometheus() -> Response:
    return Response(metrics.text(), media_type=metrics.media_type)

  if service.lm.tokenizer is not None:
    _add_tokenizer(app, service)


def _add_tokenizer(app: fastapi.FastAPI, service: Service) -> None:
  tokenizer, config = service.lm.tokenizer, service.lm.config

  @app.post("/tokenize")
  async def tokenize(request: fastapi.Request) -> dict[str, Any]:
    body = schemas.parse(schemas.Tokenize, await _body(request, service.limits))
    try:
      encoded = await run_in_threadpool(
        tokenizer, body.prompt, add_special_tokens=body.add_special_tokens
      )
    except UnicodeEncodeError as error:
      raise ApiError(400, f"not valid text: {error.reason}", param="prompt") from None
    ids = list(encoded.input_ids)
    return {"tokens": ids, "count": len(ids), "max_model_len": config.max_position_embeddings}

  @app.post("/detokenize")
  async def detokenize(request: fastapi.Request) -> dict[str, str]:
    body = schemas.parse(schemas.Detokenize, await _body(request, service.limits))
    wrong = [i for i in body.tokens if not 0 <= i < config.vocab_size]
    if wrong:
      message = f"tokens hold {wrong[0]}; the model has ids 0 to {config.vocab_size - 1}"
      raise ApiError(400, message, param="tokens")
    return {"prompt": await run_in_threadpool(tokenizer.decode, body.tokens)}

  @app.get("/tokenizer_info")
  async def tokenizer_info() -> dict[str, Any]:
    return {
      "tokenizer_class": type(tokenizer).__name__,
      "vocab_size": len(tokenizer),
      "model_max_length": config.max_position_embeddings,
      **{name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")},
      "chat_template": getattr(tokenizer, "chat_template", None),
    }


def _add_completions(app: fastapi.FastAPI, service: Service, metrics: Metrics) -> None:
  completions = Completions(service.lm, service.generator, service.name)

  async def respond(request: fastapi.Request, job: Job) -> Response:
    gone = request.is_disconnected
    if not job.body.stream:
      answer = await completions.answer(job, gone)
      if answer is None:
        return Response(status_code=499)  # nobody reads it
      metrics.tokens(answer["usage"])
      return JSONResponse(answer)
    updates = completions.updates(job, gone)
    first = await anext(updates, None)  # what is refused has a status of its own
    return StreamingResponse(
      completions.events(job, first, updates, metrics.tokens), media_type="text/event-stream",
      headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )  # fmt: skip

  @app.post("/v1/completions")
  async def complete(request: fastapi.Request) -> Response:
    body = schemas.parse(schemas.Completion, await _body(request, service.limits))
    _check_model(service, body.model)
    return await respond(request, await run_in_threadpool(completions.job, body))

  @app.post("/v1/chat/completions")
  async def chat(request: fastapi.Request) -> Response:
    body = schemas.parse(schemas.Chat, await _body(request, service.limits))
    _check_model(service, body.model)
    return await respond(request, await run_in_threadpool(completions.chat_job, body))


def _add_classify(app: fastapi.FastAPI, service: Service) -> None:
  lm = service.lm

  @app.post("/v1/classify")
  async def classify(request: fastapi.Request) -> dict[str, Any]:
    body = schemas.parse(schemas.Classify, await _body(request, service.limits))
    _check_model(service, body.model)
    given = body.input if isinstance(body.input, list) else [body.input]
    if len(given) > service.limits.inputs:
      message = f"there are {len(given)} inputs; at most {service.limits.inputs} are taken"
      raise ApiError(400, message, param="input")
    try:
      said = await _predicted(service, given)
    except (UserError, DataError) as error:
      raise ApiError(400, str(error), param="input") from None
    return {
      "object": "list",
      "model": service.name,
      "task": prediction.task_of(lm)[0].task,
      "data": [{"index": number, **one} for number, one in enumerate(said)],
    }


async def _predicted(service: Service, given: list[Any]) -> list[dict[str, Any]]:
  try:
    future = service.generator.call(lambda: service.lm.predict(given))
  except Closed:
    raise ApiError(503, "the server is shutting down") from None
  return await asyncio.wrap_future(future)


def _check_model(service: Service, name: str | None) -> None:
  """Raises ApiError for a model that is not served."""
  if name not in (None, "", service.name):
    raise ApiError(
      404, f"The model {name!r} does not exist; {service.name!r} is served here",
      param="model", code="model_not_found",
    )  # fmt: skip
