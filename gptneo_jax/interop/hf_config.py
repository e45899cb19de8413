"""Converts Hugging Face's config.json to ModelConfig and back.

ModelConfig takes what defines the model; everything else in their file (token ids, task settings)
is kept unchanged and written again on export. A setting that changes the model's outputs and is not
implemented here is refused by name. Source: transformers' configuration_gpt_neo.py and
configuration_gpt2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.model.activations import ALIASES

# Our field: their names, the first of which is written, and the default.
_SHARED = {
  "vocab_size": (("vocab_size",), 50257),
  "layer_norm_epsilon": (("layer_norm_epsilon",), 1e-5),
  "initializer_range": (("initializer_range",), 0.02),
  "tie_word_embeddings": (("tie_word_embeddings",), True),
  "activation_function": (("activation_function",), "gelu_new"),
}
_FIELDS = {
  "gpt_neo": {
    **_SHARED,
    "max_position_embeddings": (("max_position_embeddings",), 2048),
    "hidden_size": (("hidden_size",), 2048),
    "num_layers": (("num_layers", "num_hidden_layers"), 24),
    "num_heads": (("num_heads", "num_attention_heads"), 16),
    "intermediate_size": (("intermediate_size",), None),
    "window_size": (("window_size",), 256),
    "resid_dropout": (("resid_dropout",), 0.0),
    "embed_dropout": (("embed_dropout",), 0.0),
    "attention_dropout": (("attention_dropout",), 0.0),
    "classifier_dropout": (("classifier_dropout",), 0.1),
  },
  "gpt2": {
    **_SHARED,
    "max_position_embeddings": (("n_positions", "max_position_embeddings"), 1024),
    "hidden_size": (("n_embd", "hidden_size"), 768),
    "num_layers": (("n_layer", "num_hidden_layers"), 12),
    "num_heads": (("n_head", "num_attention_heads"), 12),
    "intermediate_size": (("n_inner",), None),
    "resid_dropout": (("resid_pdrop",), 0.1),
    "embed_dropout": (("embd_pdrop",), 0.1),
    "attention_dropout": (("attn_pdrop",), 0.1),
    "classifier_dropout": (("classifier_dropout", "hidden_dropout"), 0.1),
    "summary_first_dropout": (("summary_first_dropout",), 0.1),
    "scale_attn_weights": (("scale_attn_weights",), True),
    "scale_attn_by_inverse_layer_idx": (("scale_attn_by_inverse_layer_idx",), False),
  },
}

# Settings of which only this value is implemented; any other changes the model's outputs.
_ONLY: dict[str, Any] = {
  "add_cross_attention": False,
  "is_encoder_decoder": False,
  "pruned_heads": {},
  "quantization_config": None,
}
_ONLY_DOUBLE_HEADS = {
  "summary_type": "cls_index",
  "summary_use_proj": True,
  "summary_activation": None,
}

CLASSES = {
  "lm": {"gpt_neo": "GPTNeoForCausalLM", "gpt2": "GPT2LMHeadModel"},
  "sequence_classification": {
    "gpt_neo": "GPTNeoForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
  },
  "token_classification": {
    "gpt_neo": "GPTNeoForTokenClassification",
    "gpt2": "GPT2ForTokenClassification",
  },
  "question_answering": {
    "gpt_neo": "GPTNeoForQuestionAnswering",
    "gpt2": "GPT2ForQuestionAnswering",
  },
  "double_heads": {"gpt2": "GPT2DoubleHeadsModel"},
}
_HEADS = {name: head for head, names in CLASSES.items() for name in names.values()}
_VALUE_HEAD = "WithValueHead"  # trl's: a language model with additional tensors v_head.*
_BASE_CLASSES = (
  "GPTNeoModel",
  "GPT2Model",
)  # without a head; read as a language model with a tied head


_MOST_LAYERS = 10_000  # more in a file are damage


def from_hf(fields: Mapping[str, Any], path: Any) -> ModelConfig:
  """ModelConfig of a Hugging Face model.

  Args:
    fields: the content of its config.json.
    path: of that file, for messages.

  Raises:
    UserError: another kind of model, a setting that is not implemented, or settings that contradict
      each other.
  """
  family = fields.get("model_type")
  if not isinstance(family, str) or family not in _FIELDS:
    raise UserError(
      f"{path}: model_type is {family!r}; supported are {' and '.join(sorted(_FIELDS))}"
    )
  head = _head(fields, path)
  _refuse_others(fields, _ONLY, path)
  values = {ours: _value(fields, names, default, path) for ours, (names, default)
            in _FIELDS[family].items()}  # fmt: skip
  values["intermediate_size"] = values["intermediate_size"] or 0
  activation = values["activation_function"]
  values["activation_function"] = ALIASES.get(activation, activation)
  if family == "gpt_neo":
    layers = _attention_layers(fields, values["num_layers"], path)
    values["attention_pattern"] = _shortest_period(layers)
  else:
    values["attention_pattern"] = ("global",)
  if head == "double_heads":
    _refuse_others(fields, _ONLY_DOUBLE_HEADS, path)
  if head in ("sequence_classification", "token_classification"):
    values |= _labels(fields, path)
  pad = fields.get("pad_token_id")
  for name in ("embed_dropout", "attention_dropout", "resid_dropout", "layer_norm_epsilon"):
    values[name] = float(values[name])  # older files have the integer 0
  try:
    return ModelConfig(
      model_type=family,
      head=head,
      pad_token_id=-1 if pad is None else pad,
      initializer="hf",
      **values,
    )
  except (ValueError, TypeError) as error:
    raise UserError(f"{path}: {error}") from None


def to_hf(
  config: ModelConfig, original: Mapping[str, Any], transformers_version: str
) -> dict[str, Any]:
  """The content of a Hugging Face config.json.

  original: the config.json that the model was imported with, {} if it was not imported; settings
  that ModelConfig does not have are taken from it.
  """
  family = config.model_type
  fields = dict(original) or {"bos_token_id": None, "eos_token_id": None, "use_cache": True}
  for name in ("torch_dtype", "_name_or_path"):
    fields.pop(name, None)  # torch_dtype is the older name of dtype
  for ours, (names, _) in _FIELDS[family].items():
    for alias in names[1:]:
      fields.pop(alias, None)
    fields[names[0]] = getattr(config, ours)
  if family == "gpt2" and "classifier_dropout" not in original:
    # Not a field of GPT2Config, but GPT2ForTokenClassification reads it.
    if config.head != "token_classification" or config.classifier_dropout == 0.1:
      fields.pop("classifier_dropout")
  activation = original.get("activation_function", "")
  if ALIASES.get(activation) == config.activation_function:
    fields["activation_function"] = activation  # the alias that it was imported with
  intermediate = _FIELDS[family]["intermediate_size"][0][0]
  fields[intermediate] = config.intermediate_size or None
  if family == "gpt_neo":
    layers = list(config.attention_layers)
    kept = original.get("attention_types")
    if not kept or _expand(kept) != layers:
      pattern = list(config.attention_pattern)
      fields["attention_types"] = [[pattern, config.num_layers // config.period]]
    fields["attention_layers"] = layers
  fields["model_type"] = family
  fields["architectures"] = [CLASSES[config.head][family]]
  fields["dtype"] = config.param_dtype
  fields["transformers_version"] = transformers_version
  fields["pad_token_id"] = None if config.pad_token_id < 0 else config.pad_token_id
  if config.head in ("sequence_classification", "token_classification"):
    names = config.id2label or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    fields["id2label"] = {str(i): name for i, name in enumerate(names)}
    fields.pop("num_labels", None)  # follows from id2label
    fields["label2id"] = {name: i for i, name in enumerate(names)}
    if config.problem_type:
      fields["problem_type"] = config.problem_type
  return dict(sorted(fields.items()))


def _head(fields: Mapping[str, Any], path: Any) -> str:
  names = fields.get("architectures") or []
  if not _is_names(names):
    raise UserError(f"{path}: architectures is {names!r:.80}, not a list of names")
  if not names or names[0] in _BASE_CLASSES or names[0].endswith(_VALUE_HEAD):
    return "lm"
  if names[0] not in _HEADS:
    raise UserError(
      f"{path}: architectures names {names[0]}; supported are {', '.join(sorted(_HEADS))}"
    )
  return _HEADS[names[0]]


def _is_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _refuse_others(fields: Mapping[str, Any], only: Mapping[str, Any], path: Any) -> None:
  for name, supported in only.items():
    value = fields.get(name, supported)
    if value != supported and (value or supported):
      raise UserError(f"{path}: {name} is {value!r}; only {supported!r} is supported")


def _value(fields: Mapping[str, Any], names: tuple[str, ...], default: Any, path: Any) -> Any:
  """The value of the first of the names that the file has; aliases of a size must agree."""
  there = {name: fields[name] for name in names if fields.get(name) is not None}
  if type(default) is int and any(value != next(iter(there.values())) for value in there.values()):
    raise UserError(f"{path}: {' and '.join(f'{k}={v!r}' for k, v in there.items())} disagree")
  value = next(iter(there.values()), default)
  kinds = type(default) if isinstance(default, (bool, str)) else (int, float)
  if value is not None and not isinstance(value, kinds):
    raise UserError(
      f"{path}: {names[0]} is {value!r}, which is not of type {type(default).__name__}"
    )
  if isinstance(value, float) and (default is None or type(default) is int):
    raise UserError(f"{path}: {names[0]} is {value!r}, which is not an integer")
  return value


def _labels(fields: Mapping[str, Any], path: Any) -> dict[str, Any]:
  names = fields.get("id2label")
  count = fields.get("num_labels")
  if names is not None:
    try:
      ordered = tuple(names[key] for key in sorted(names, key=int))
    except (TypeError, ValueError):
      raise UserError(f"{path}: id2label is {names!r}, not names by number") from None
    if count is not None and count != len(ordered):
      raise UserError(f"{path}: num_labels is {count}, and id2label has {len(ordered)}")
    count = len(ordered)
  else:
    ordered, count = (), 2 if count is None else count
  return {
    "num_labels": count, "id2label": ordered, "problem_type": fields.get("problem_type") or ""
  }  # fmt: skip


def _attention_layers(fields: Mapping[str, Any], num_layers: int, path: Any) -> list[str]:
  """Each layer's kind of attention, by `attention_types`, `attention_layers` or their default."""
  types, layers = fields.get("attention_types"), fields.get("attention_layers")
  if layers is not None and not _is_names(layers):
    raise UserError(f"{path}: attention_layers is {layers!r:.80}, not a list of kinds")
  if types is None and layers is None:
    types = [[["global", "local"], 12]]
  if types is not None:
    try:
      expanded = _expand(types)
    except (TypeError, ValueError, IndexError):
      raise UserError(
        f"{path}: attention_types is {types!r:.200}, not [[[kind, ...], count]]"
      ) from None
    if layers is not None and list(layers) != expanded:
      raise UserError(f"{path}: attention_layers is not what attention_types expands to")
    layers = expanded
  assert layers is not None  # given, or expanded
  if len(layers) != num_layers:
    raise UserError(
      f"{path}: attention_types has {len(layers)} layers, and num_layers is {num_layers}"
    )
  return list(layers)


def _expand(types: Any) -> list[str]:
  """Raises ValueError or TypeError for what is not pairs of kinds and a count."""
  layers: list[str] = []
  for kinds, count in types:
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not _is_names(kinds) or type(count) is not int or not 0 <= count <= _MOST_LAYERS:
      raise ValueError
    layers += kinds * count
  return layers


def _shortest_period(layers: list[str]) -> tuple[str, ...]:
  for period in range(1, len(layers) + 1):
    if len(layers) % period == 0 and layers == layers[:period] * (len(layers) // period):
      return tuple(layers[:period])
  return tuple(layers)
