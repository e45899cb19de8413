"""Errors as OpenAI's API has them: an object with message, type, param and code."""

from __future__ import annotations

from typing import Any

from gptneo_jax.errors import UserError


class ApiError(Exception):
  """What a client gets instead of an answer.

  status: of HTTP. param: the field that is wrong. code: what a program may look for.
  """

  def __init__(
    self, status: int, message: str, *, param: str | None = None, code: str | None = None
  ):
    super().__init__(message)
    self.status, self.message, self.param, self.code = status, message, param, code

  @property
  def body(self) -> dict[str, Any]:
    kind = "invalid_request_error" if self.status < 500 else "server_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
    return {
      "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
    }


def of_user_error(error: UserError, names: dict[str, str]) -> ApiError:
  """names: of options, as messages have them, and the fields of a request that they come from."""
  message = str(error).removeprefix("generate: ")
  option = next((name for name in names if name in message), None)
  if option is None:
    return ApiError(400, message)
  return ApiError(400, message.replace(option, names[option]), param=names[option])


def too_long(limit: int, prompt: int, new: int, param: str) -> ApiError:
  """The prompt and the new tokens are more than the model has positions."""
  return ApiError(
    400,
    f"This model's maximum context length is {limit} tokens. However, you requested {prompt + new}"
    f" tokens ({prompt} in the {param}, {new} in the completion), which is {prompt + new - limit}"
    " too many. Please shorten one of them.",
    param=param,
    code="context_length_exceeded",
  )
