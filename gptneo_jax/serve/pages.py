"""The page at /: a chat, or a form to try a model with a head. All of it is served from here."""

from __future__ import annotations

import pathlib
from typing import Any

import fastapi
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from gptneo_jax.engine import LanguageModel
from gptneo_jax.generation import prediction

STATIC = pathlib.Path(__file__).with_name("static")
# Scripts of this server alone, and nothing that any of them could fetch from elsewhere.
_POLICY = (
  "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self'"
  " data:; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none';"
  " frame-ancestors *"  # Colab shows it in a frame
)
# What the form asks for, by task.
_FIELDS: dict[str, list[str]] = {
  "sequence_classification": ["text"],
  "token_classification": ["text"],
  "sentence_pairs": ["first", "second"],
  "question_answering": ["context", "question"],
  "multiple_choice": ["question", "choices"],
}


def add_pages(app: fastapi.FastAPI, lm: LanguageModel, name: str, needs_key: bool) -> None:
  about = _about(lm, name, needs_key)
  page = "chat.html" if lm.config.has_lm_head else "classify.html"

  @app.get("/")
  async def front() -> FileResponse:
    return FileResponse(STATIC / page, headers={"Content-Security-Policy": _POLICY})

  @app.get("/about")
  async def describe() -> dict[str, Any]:
    return about

  app.mount("/static", StaticFiles(directory=STATIC))


def _about(lm: LanguageModel, name: str, needs_key: bool) -> dict[str, Any]:
  """What the page has to know."""
  about: dict[str, Any] = {
    "model": name,
    "positions": lm.config.max_position_embeddings,
    "needs_key": needs_key,
  }
  if lm.config.has_lm_head:
    return about | {"has_template": lm.has_template}
  task = prediction.task_of(lm)[0].task
  return about | {"task": task, "fields": _FIELDS[task]}
