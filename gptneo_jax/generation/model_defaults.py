"""Generation options in a model's generation_config.json, or else in its config.json.

As in transformers, config.json is read for them only if there is no generation_config.json.
Source: GenerationMixin.adjust_generation_fn and _prepare_generation_config.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from gptneo_jax.errors import UserError
from gptneo_jax.generation.sampling import GenerationOptions

_log = logging.getLogger(__name__)

IGNORE = "lm.generation_config = {} (--ignore_generation_config) leaves it out"

# Options of a single call: transformers' file cannot hold them, or they say what to return.
_OF_A_CALL = {
  "assistant_model", "negative_prompt", "logits_processor", "inherited", "output_scores",
  "output_logits", "output_logprobs",
}  # fmt: skip
_TAKEN = {field.name for field in dataclasses.fields(GenerationOptions)} - _OF_A_CALL
# Options of transformers that are not supported, each with the value that changes nothing.
_UNSUPPORTED = {
  "max_time": None, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
  "penalty_alpha": None, "dola_layers": None, "num_beam_groups": 1, "diversity_penalty": 0.0,
  "constraints": None, "force_words_ids": None, "watermarking_config": None,
  "token_healing": False, "assistant_early_exit": None, "use_mtp": False,
}  # fmt: skip


def read(
  generation_config: str | None, config: str | None, tokenizer_end: int | None
) -> dict[str, Any]:
  """The options, by transformers' names, `bos_token_id` among them; and logs what they change.

  Args:
    generation_config, config: the text of generation_config.json and of Hugging Face's config.json,
      None where there is no such file.
    tokenizer_end: the tokenizer's end of text, which is not logged.

  Raises:
    UserError: a file is damaged.
  """
  ours = _fields("config.json", config)
  file = "config.json" if generation_config is None else "generation_config.json"
  found = ours if generation_config is None else _fields(file, generation_config)
  options = {name: found[name] for name in (*sorted(_TAKEN), "bos_token_id") if name in found}
  if options.get("pad_token_id", 0) < 0:  # some files write -1 for none
    del options["pad_token_id"]
  for name in ("eos_token_id", "bos_token_id"):  # else those of config.json
    if name not in options and name in ours:
      options[name] = ours[name]
  applied = GenerationOptions.that_apply(options, {})
  plain = {field.name: field.default for field in dataclasses.fields(GenerationOptions)}
  plain |= {"eos_token_id": tokenizer_end, "pad_token_id": applied.get("pad_token_id")}
  _log_changes(
    file,
    {name: value for name, value in applied.items() if name in plain and value != plain[name]},
    {n: found[n] for n, value in _UNSUPPORTED.items() if found.get(n, value) != value},
  )
  return options


def _fields(file: str, text: str | None) -> dict[str, Any]:
  """The object in a JSON file, without its null values."""
  if text is None:
    return {}
  try:
    fields = json.loads(text)
    if not isinstance(fields, dict):
      raise ValueError("it holds no object")
  except ValueError as error:
    raise UserError(f"the model's {file} cannot be read: {error}; {IGNORE}") from None
  return {name: value for name, value in fields.items() if value is not None}


def _log_changes(file: str, taken: Mapping[str, Any], unsupported: Mapping[str, Any]) -> None:
  """Logs one line if there is anything to tell."""
  words = [f"{name} {value}" for name, value in taken.items()]
  words += [f"{name} {value} (not supported, left out)" for name, value in unsupported.items()]
  if words:
    _log.warning(
      "generate: the model's %s sets %s; what you give wins, and %s", file, ", ".join(words), IGNORE
    )
