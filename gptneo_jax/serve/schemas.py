"""What clients may send, and what of it means which options of `generate`.

Names and defaults are OpenAI's; options of `generate` are taken beside them by their own names.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Annotated, Any

import pydantic
from pydantic import Field

from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.generation.token_logprobs import ALTERNATIVES
from gptneo_jax.serve.errors import ApiError

_log = logging.getLogger(__name__)

_Unit = Annotated[float, Field(gt=0, le=1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Stop = str | Annotated[list[str], Field(max_length=16)] | None
_Bias = dict[str, Annotated[float, Field(ge=-100, le=100)]] | None

# Options of `generate` that are taken by their own names; those that make one text of many, or
# another result than a text, make no sense here.
OPTIONS = frozenset({
  "min_new_tokens", "sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
  "forced_bos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
  "suppress_tokens", "begin_suppress_tokens", "renormalize_logits", "top_h", "top_k", "min_p",
  "typical_p", "epsilon_cutoff", "eta_cutoff",
})  # fmt: skip
_OTHERS = {field.name for field in dataclasses.fields(GenerationOptions)} - OPTIONS
# Fields of OpenAI's and of other servers' that would change the answer, and values by which they do
# not.
_REFUSED: dict[str, tuple] = {
  "suffix": ("",), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
  "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "audio": (),
  "modalities": (["text"],), "prediction": (), "web_search_options": (), "grammar": ("",),
  "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
  "structured_outputs": (), "json_schema": (), "stop_token_ids": ([],), "use_beam_search": (False,),
  "prompt_embeds": (), "logits_processors": ([],), "truncate_prompt_tokens": (),
}  # fmt: skip
# Where an option of `generate` comes from, for errors that name it.
FIELDS = {
  "stop string": "stop", "stop_strings": "stop",
  "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "temperature": "temperature",
  "top_p": "top_p", "presence_penalty": "presence_penalty",
  "frequency_penalty": "frequency_penalty", **{name: name for name in sorted(OPTIONS)},
  "sequence_bias": "logit_bias",
}  # fmt: skip


class StreamOptions(pydantic.BaseModel, strict=True, extra="ignore"):
  include_usage: bool = False


class Common(pydantic.BaseModel, strict=True, extra="allow", allow_inf_nan=False):
  """Fields of completions and of chats."""

  model: str | None = None
  temperature: float = Field(default=1.0, ge=0, le=100)
  top_p: _Unit = 1.0
  n: int = Field(default=1, ge=1, le=128)
  stop: _Stop = None
  seed: int | None = None
  presence_penalty: _Penalty = 0.0
  frequency_penalty: _Penalty = 0.0
  logit_bias: _Bias = None
  stream: bool = False
  stream_options: StreamOptions | None = None
  min_tokens: int | None = Field(default=None, ge=0)
  ignore_eos: bool = False

  @pydantic.model_validator(mode="before")
  @classmethod
  def _null_is_the_default(cls, given: Any) -> Any:
    if not isinstance(given, dict):
      return given
    return {name: value for name, value in given.items() if value is not None}

  @property
  def stops(self) -> list[str]:
    """The stop strings. An empty list is none."""
    return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

  def options(self, defaults: dict[str, Any], new_tokens: int) -> dict[str, Any]:
    """Options of `generate`. defaults: the model's own. Raises ApiError."""
    extra = self.model_extra or {}
    _check(extra)
    options: dict[str, Any] = {
      "max_new_tokens": max(new_tokens, 1),
      "do_sample": self.temperature > 0,
      "num_beams": 1,
      "num_return_sequences": 1,
      "presence_penalty": self.presence_penalty,
      "frequency_penalty": self.frequency_penalty,
    }
    if self.temperature > 0:
      # transformers' own default of 50 is not OpenAI's.
      options |= {"temperature": self.temperature, "top_p": self.top_p}
      options["top_k"] = defaults.get("top_k", 0)
    if self.stops:
      options["stop_strings"] = self.stops
    if self.ignore_eos:
      options["eos_token_id"] = -1
    if self.min_tokens:
      options["min_new_tokens"] = self.min_tokens
    if self.logit_bias and "sequence_bias" in extra:
      message = "logit_bias and sequence_bias are both given; give one"
      raise ApiError(400, message, param="logit_bias")
    if self.logit_bias:
      options["sequence_bias"] = [[[_id(key)], bias] for key, bias in self.logit_bias.items()]
    return options | {name: extra[name] for name in extra if name in OPTIONS}


class Completion(Common):
  """Of POST /v1/completions."""

  prompt: str | list[str] | list[int] | list[list[int]] = ""
  max_tokens: int = Field(default=16, ge=0)
  echo: bool = False
  best_of: int | None = Field(default=None, ge=1, le=128)
  logprobs: int | None = Field(default=None, ge=0, le=ALTERNATIVES)

  @property
  def alternatives(self) -> int | None:
    """How many likeliest tokens are asked for beside each; None for no log-probabilities."""
    return self.logprobs


class Message(pydantic.BaseModel, strict=True, extra="ignore"):
  """A turn; its content is a text, or parts of type text."""

  role: str
  content: str | list[dict[str, Any]] | None = None

  def plain(self, number: int) -> dict[str, str]:
    """Raises ApiError."""
    place = f"messages[{number}]"
    role = {"developer": "system"}.get(self.role, self.role)
    if role not in ("system", "user", "assistant"):
      message = f"{place}.role is {self.role!r}; it is system, user or assistant"
      raise ApiError(400, message, param=f"{place}.role")
    if isinstance(self.content, str):
      return {"role": role, "content": self.content}
    parts = self.content or []
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts) or not texts:
      raise ApiError(
        400, f"{place}.content is neither a text nor parts of type text", param=f"{place}.content"
      )
    return {"role": role, "content": "\n".join(map(str, texts))}


class Chat(Common):
  """Of POST /v1/chat/completions. Without max_tokens an answer may use all positions there are."""

  messages: list[Message] = Field(min_length=1)
  max_tokens: int | None = Field(default=None, ge=1)
  max_completion_tokens: int | None = Field(default=None, ge=1)
  logprobs: bool = False
  top_logprobs: int | None = Field(default=None, ge=0, le=ALTERNATIVES)

  @property
  def alternatives(self) -> int | None:
    return (self.top_logprobs or 0) if self.logprobs else None


class Tokenize(pydantic.BaseModel, strict=True, extra="ignore"):
  """Of POST /tokenize."""

  prompt: str
  add_special_tokens: bool = True


class Detokenize(pydantic.BaseModel, strict=True, extra="ignore"):
  """Of POST /detokenize."""

  tokens: list[int]


class Classify(pydantic.BaseModel, strict=True, extra="ignore"):
  """Of POST /v1/classify: a text, the fields of a record, or several of them."""

  input: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]
  model: str | None = None


def parse(kind: type[pydantic.BaseModel], body: Any) -> Any:
  """A request of this kind. Raises ApiError, naming the first field that is wrong."""
  if not isinstance(body, dict):
    raise ApiError(400, "the body is no JSON object")
  try:
    return kind.model_validate(body)
  except pydantic.ValidationError as error:
    first = error.errors()[0]
    # Without the kinds that pydantic has tried for a field that may be several.
    path = [part for part in first["loc"] if isinstance(part, int) or part in _names(kind)]
    name = ".".join(map(str, path)) or None
    raise ApiError(400, f"{name or 'the body'}: {first['msg']}", param=name) from None


def _names(kind: type[pydantic.BaseModel]) -> set[str]:
  return {*kind.model_fields, *Message.model_fields, *StreamOptions.model_fields}


def _check(extra: dict[str, Any]) -> None:
  """Raises ApiError for fields that would change the answer, and logs those that do not."""
  for name, value in extra.items():
    if name in _REFUSED and value not in _REFUSED[name]:
      raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    if name in _OTHERS:
      raise ApiError(
        400, f"{name} is an option of generate that a server does not take", param=name,
        code="unsupported_parameter",
      )  # fmt: skip
  ignored = [name for name in extra if name not in OPTIONS]
  if ignored:
    _log.info("ignored: %s", ", ".join(sorted(ignored))[:200])


def _id(key: str) -> int:
  try:
    return int(key)
  except ValueError:
    raise ApiError(400, f"logit_bias holds {key!r}, which is no id", param="logit_bias") from None
