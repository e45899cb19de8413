"""The model's configuration: what a GPT-Neo or GPT-2 is, how large, and what a token costs.

Sizes of the released models: EleutherAI/gpt-neo (git history, commit b53c6f0) and the Hugging
Face configs; GPT-2 sizes: openai/gpt-2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from gptneo_jax.axes import round_up
from gptneo_jax.errors import did_you_mean

# How a model is run, as opposed to what it is: two folders that differ only here hold the same
# model.
_EXECUTION_FIELDS = (
  "dtype", "remat", "attention_impl", "initializer", "initializer_range", "vocab_multiple",
  "embed_dropout", "attention_dropout", "resid_dropout", "classifier_dropout",
  "summary_first_dropout", "lora_dropout", "neftune_alpha",
)  # fmt: skip

# Of a run of training, which says them elsewhere than under `model`; in no folder.
_OF_A_RUN = ("lora_dropout", "neftune_alpha")

HEADS = (
  "lm",
  "sequence_classification",
  "token_classification",
  "question_answering",
  "double_heads",
)

# Of the MLP; model/activations.py has a function for each.
ACTIVATIONS = (
  "gelu_new", "gelu", "gelu_10", "quick_gelu", "relu", "relu2", "relu6", "leaky_relu", "silu",
  "hardswish", "mish", "sigmoid", "tanh", "linear", "laplace", "sqrtsoftplus",
)  # fmt: skip

VOCABULARY_TABLES = ("wte", "lm_head")  # parameters with a row for each id, and then padding

FLOAT_TYPES = ("float32", "bfloat16", "float16")  # float16: inference only

REMATS = ("none", "dots", "full")  # what the backward pass computes again

_CHOICES = {
  "model_type": ("gpt_neo", "gpt2"),
  "head": HEADS,
  "activation_function": ACTIVATIONS,
  "problem_type": (
    "",
    "regression",
    "single_label_classification",
    "multi_label_classification",
  ),
  "initializer": ("mesh_tf", "hf"),
  "remat": REMATS,
  "attention_impl": ("auto", "xla", "splash", "cudnn", "reference"),
  "dtype": FLOAT_TYPES,
  "param_dtype": FLOAT_TYPES,
}


def dtype_name(dtype: Any) -> Any:
  """'bfloat16' of jnp.bfloat16, and so on; None, and what is no type, as it is."""
  if dtype is None or isinstance(dtype, str):
    return dtype
  try:
    return np.dtype(dtype).name
  except TypeError:
    return dtype


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer with alternating attention. Raises ValueError if inconsistent."""

  model_type: str = "gpt_neo"
  vocab_size: int = 50257
  max_position_embeddings: int = 2048
  hidden_size: int = 768
  num_layers: int = 12
  num_heads: int = 12
  intermediate_size: int = 0  # 0: 4 * hidden_size
  attention_pattern: tuple[str, ...] = ("global", "local")  # one period, repeated over the layers
  window_size: int = 256  # keys a local query sees, itself included
  activation_function: str = "gelu_new"  # of the MLP; any of activations.py
  scale_attn_weights: bool = True  # GPT-2: by 1 / sqrt(head_dim); GPT-Neo has no scale
  scale_attn_by_inverse_layer_idx: bool = False  # GPT-2: by 1 / (layer + 1) too
  layer_norm_epsilon: float = 1e-5
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  resid_dropout: float = 0.0
  tie_word_embeddings: bool = True
  head: str = "lm"  # double_heads (language model and multiple choice) is GPT-2's only
  num_labels: int = 2  # of the two classification heads
  problem_type: str = ""  # of sequence classification; '': as the labels say (model/heads.py)
  id2label: tuple[str, ...] = ()  # names of the labels; (): none
  pad_token_id: int = -1  # -1: none; sequence classification finds the end of a row by it
  classifier_dropout: float = 0.1  # before the token classifier
  summary_first_dropout: float = 0.1  # before the multiple-choice projection
  lora_dropout: float = 0.0  # of what low-rank factors read, beside their kernels
  neftune_alpha: float = 0.0  # noise on embeddings, U(-1, 1) · alpha / sqrt(tokens · D); 0: none
  vocab_multiple: int = 1  # the embedding table is padded to a multiple of this, for sharding
  initializer: str = "mesh_tf"
  initializer_range: float = 0.02
  dtype: str = "float32"  # of the computation
  param_dtype: str = "float32"  # of the stored parameters
  remat: str = "none"
  attention_impl: str = "auto"

  def __post_init__(self):
    for name in ("dtype", "param_dtype"):
      object.__setattr__(self, name, dtype_name(getattr(self, name)))
    object.__setattr__(self, "attention_pattern", tuple(self.attention_pattern))
    object.__setattr__(self, "id2label", tuple(self.id2label))
    for name, choices in _CHOICES.items():
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"model.{name} is {value!r}; it must be one of {', '.join(choices)}")
    for name in ("vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads",
                 "window_size", "num_labels", "vocab_multiple"):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
    if self.intermediate_size < 0:
      raise ValueError("model.intermediate_size is negative; 0 means 4 * hidden_size")
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads {self.num_heads}"
      )
    unknown = set(self.attention_pattern) - {"global", "local"}
    if unknown or not self.attention_pattern:
      raise ValueError(
        f"model.attention_pattern {self.attention_pattern} must hold 'global' and 'local' only"
      )
    if self.num_layers % self.period:
      raise ValueError(
        f"model.num_layers {self.num_layers} is not a multiple of the {self.period} layers of"
        f" model.attention_pattern {self.attention_pattern}"
      )
    if self.model_type != "gpt2" and (
      self.scale_attn_by_inverse_layer_idx or not self.scale_attn_weights
    ):
      raise ValueError(
        "model.scale_attn_weights and model.scale_attn_by_inverse_layer_idx are GPT-2's; GPT-Neo"
        " does not scale attention"
      )
    if self.head == "double_heads" and self.model_type != "gpt2":
      raise ValueError("model.head 'double_heads' is GPT-2's; GPT-Neo has no such head")
    if self.id2label and len(self.id2label) != self.num_labels:
      raise ValueError(
        f"model.id2label names {len(self.id2label)} labels, and model.num_labels is"
        f" {self.num_labels}"
      )
    if self.pad_token_id < -1:
      raise ValueError(f"model.pad_token_id is {self.pad_token_id}; -1 means none")
    for name in ("embed_dropout", "attention_dropout", "resid_dropout", "classifier_dropout",
                 "summary_first_dropout", "lora_dropout"):  # fmt: skip
      if not 0.0 <= getattr(self, name) < 1.0:
        where = "lora.dropout" if name == "lora_dropout" else f"model.{name}"
        raise ValueError(f"{where} is {getattr(self, name)}; it must lie in [0, 1)")
    if not self.neftune_alpha >= 0:
      raise ValueError(f"neftune_alpha is {self.neftune_alpha}; it must be 0 (none) or more")

  @property
  def period(self) -> int:
    """Layers after which the attention pattern repeats: what the model scans over."""
    return len(self.attention_pattern)

  @property
  def attention_layers(self) -> tuple[str, ...]:
    """The kind of each layer's attention, first to last."""
    return self.attention_pattern * (self.num_layers // self.period)

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def mlp_size(self) -> int:
    return self.intermediate_size or 4 * self.hidden_size

  @property
  def padded_vocab_size(self) -> int:
    return round_up(self.vocab_size, self.vocab_multiple)

  @property
  def attention_scale(self) -> float:
    """What multiplies q·k: 1 for GPT-Neo, which folds the scale into its initialiser.

    With `scale_attn_by_inverse_layer_idx` layer i, counted from 0, divides it by i + 1.
    """
    scaled = self.model_type == "gpt2" and self.scale_attn_weights
    return self.head_dim**-0.5 if scaled else 1.0

  @property
  def qkv_bias(self) -> bool:
    return self.model_type == "gpt2"

  @property
  def has_lm_head(self) -> bool:
    """Whether hidden states become logits over the vocabulary."""
    return self.head in ("lm", "double_heads")

  @property
  def draws_in_training(self) -> bool:
    """Whether the decoder draws random numbers in training: any dropout of its own, or noise."""
    return any((
      self.embed_dropout, self.attention_dropout, self.resid_dropout, self.lora_dropout,
      self.neftune_alpha,
    ))  # fmt: skip

  @property
  def untied_lm_head(self) -> bool:
    """Whether the language-model head has a table of its own."""
    return self.has_lm_head and not self.tie_word_embeddings

  @property
  def head_size(self) -> int:
    """Outputs of the head beside the language model's, 0 if there is none."""
    return {
      "lm": 0,
      "sequence_classification": self.num_labels,
      "token_classification": self.num_labels,
      "question_answering": 2,
      "double_heads": 1,
    }[self.head]

  @property
  def head_bias(self) -> bool:
    return self.head != "sequence_classification"

  def replace(self, **changes: Any) -> ModelConfig:
    return dataclasses.replace(self, **changes)

  # --- what it costs -------------------------------------------------------------------------

  def num_params(self) -> int:
    """Number of parameters; a tied head counts once, padding of the vocabulary not at all."""
    D, F = self.hidden_size, self.mlp_size
    attention = 4 * D * D + D + (3 * D if self.qkv_bias else 0)
    mlp = 2 * D * F + F + D
    norms = 4 * D
    head = self.head_size * (D + self.head_bias)
    return (
      (2 if self.untied_lm_head else 1) * self.vocab_size * D
      + self.max_position_embeddings * D
      + self.num_layers * (attention + mlp + norms)
      + 2 * D
      + head
    )

  def flops_per_token(
    self, seq_len: int, *, attention: Literal["exact", "full_square"] = "exact"
  ) -> float:
    """FLOPs per token of a training step (forward and backward) at `seq_len` tokens.

    6N for the matrices (N: without positions; of the tables over the vocabulary only the
    language-model head counts, an embedding being a look-up) plus the attention products.
    'exact' counts the keys that are visible: causal in global layers, causal and windowed in local
    ones. 'full_square' counts T keys for every query of every layer, 12·L·D·T, as PaLM (appendix B)
    and most published MFU figures do.
    """
    n = self.num_params() - self.max_position_embeddings * self.hidden_size
    if self.untied_lm_head or not self.has_lm_head:
      n -= self.vocab_size * self.hidden_size
    if attention not in ("exact", "full_square"):
      raise ValueError(f"attention is {attention!r}; it must be 'exact' or 'full_square'")
    keys = sum(
      self.visible_keys(kind, seq_len) if attention == "exact" else seq_len
      for kind in self.attention_layers
    )
    return 6.0 * n + 12.0 * self.hidden_size * keys

  def visible_keys(self, kind: str, seq_len: int) -> float:
    """Keys that a query of one layer attends to, averaged over the sequence."""
    window = min(self.window_size, seq_len) if kind == "local" else seq_len
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len

  # --- to and from dictionaries ---------------------------------------------------------------

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
    """Builds a config; an unknown key raises ValueError with the nearest valid name."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in fields:
      if key not in names:
        raise ValueError(f"unknown model setting {key!r}{did_you_mean(key, names, '{!r}')}")
    return cls(**fields)

  def to_dict(self) -> dict[str, Any]:
    """Fields as JSON can hold them, but for what is said of a run and not of its model."""
    lists = {name: list(getattr(self, name)) for name in ("attention_pattern", "id2label")}
    fields = {**dataclasses.asdict(self), **lists}
    return {name: value for name, value in fields.items() if name not in _OF_A_RUN}

  def differences(self, other: ModelConfig) -> list[str]:
    """The fields, 'name: ours != theirs', in which `other` is a different model."""
    ours, theirs = self._identity(), other._identity()
    if self.intermediate_size == other.intermediate_size:  # 0 follows the width, which is named
      theirs["intermediate_size"] = ours["intermediate_size"]
    return [
      f"{name}: {ours.get(name)!r} != {theirs.get(name)!r}"
      for name in {**ours, **theirs}
      if ours.get(name) != theirs.get(name)
    ]

  def _identity(self) -> dict[str, Any]:
    """What makes the model that it is: no way of running it, nothing said in two ways."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    fields["intermediate_size"] = self.mlp_size
    unused = () if "local" in self.attention_pattern else ("window_size",)
    return {name: fields[name] for name in fields if name not in (*_EXECUTION_FIELDS, *unused)}


def _neo(hidden_size: int, num_layers: int, num_heads: int) -> ModelConfig:
  return ModelConfig(hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads)


def _gpt2(hidden_size: int, num_layers: int, num_heads: int) -> ModelConfig:
  return ModelConfig(
    model_type="gpt2",
    max_position_embeddings=1024,
    hidden_size=hidden_size,
    num_layers=num_layers,
    num_heads=num_heads,
    attention_pattern=("global",),
    embed_dropout=0.1,
    attention_dropout=0.1,
    resid_dropout=0.1,
    initializer="hf",
  )


# No checkpoint of the 350M model is published; its pattern is that of its siblings.
PRESETS: dict[str, ModelConfig] = {
  "neo_125m": _neo(768, 12, 12),
  "neo_350m": _neo(1024, 24, 16),
  "neo_1p3b": _neo(2048, 24, 16),
  "neo_2p7b": _neo(2560, 32, 20),
  "gpt2_small": _gpt2(768, 12, 12),
  "gpt2_medium": _gpt2(1024, 24, 16),
  "gpt2_large": _gpt2(1280, 36, 20),
  "gpt2_xl": _gpt2(1600, 48, 25),
  "distilgpt2": _gpt2(768, 6, 12),
}
