"""The model's configuration: what a GPT-Neo or GPT-2 is, how large, and what a token costs.

Sizes of the released models: EleutherAI/gpt-neo (git history, commit b53c6f0) and the Hugging
Face configs; GPT-2 sizes: openai/gpt-2.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Literal

# How a model is run, as opposed to what it is: two folders that differ only here hold the same
# model.
_EXECUTION_FIELDS = ("dtype", "remat", "attention_impl", "initializer")

_CHOICES = {
  "model_type": ("gpt_neo", "gpt2"),
  "initializer": ("mesh_tf", "hf"),
  "remat": ("none", "dots", "full"),
  "attention_impl": ("auto", "reference"),
  "dtype": ("float32", "bfloat16"),
  "param_dtype": ("float32", "bfloat16"),
}


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
  layer_norm_epsilon: float = 1e-5
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  resid_dropout: float = 0.0
  tie_word_embeddings: bool = True
  vocab_multiple: int = 1  # the embedding table is padded to a multiple of this, for sharding
  initializer: str = "mesh_tf"
  initializer_range: float = 0.02
  dtype: str = "float32"  # of the computation
  param_dtype: str = "float32"  # of the stored parameters
  remat: str = "none"
  attention_impl: str = "auto"

  def __post_init__(self):
    object.__setattr__(self, "attention_pattern", tuple(self.attention_pattern))
    for name, choices in _CHOICES.items():
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"model.{name} is {value!r}; it must be one of {', '.join(choices)}")
    for name in ("vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads",
                 "window_size", "vocab_multiple"):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
    if self.intermediate_size < 0:
      raise ValueError("model.intermediate_size is negative; 0 stands for 4 * hidden_size")
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
    for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
      if not 0.0 <= getattr(self, name) < 1.0:
        raise ValueError(f"model.{name} is {getattr(self, name)}; it must lie in [0, 1)")

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
    return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

  @property
  def attention_scale(self) -> float:
    """What multiplies q·k: 1 for GPT-Neo, which folds the scale into its initialiser."""
    return 1.0 if self.model_type == "gpt_neo" else self.head_dim**-0.5

  @property
  def qkv_bias(self) -> bool:
    return self.model_type == "gpt2"

  def replace(self, **changes: Any) -> ModelConfig:
    return dataclasses.replace(self, **changes)

  # --- what it costs -------------------------------------------------------------------------

  def num_params(self) -> int:
    """Number of parameters; a tied head counts once, padding of the vocabulary not at all."""
    D, F = self.hidden_size, self.mlp_size
    attention = 4 * D * D + D + (3 * D if self.qkv_bias else 0)
    mlp = 2 * D * F + F + D
    norms = 4 * D
    heads = 1 if self.tie_word_embeddings else 2
    return (
      heads * self.vocab_size * D
      + self.max_position_embeddings * D
      + self.num_layers * (attention + mlp + norms)
      + 2 * D
    )

  def flops_per_token(
    self, seq_len: int, *, attention: Literal["exact", "full_square"] = "exact"
  ) -> float:
    """FLOPs per token of a training step (forward and backward) at `seq_len` tokens.

    6N for the matrices (N: without positions, the head once) plus the attention products.
    'exact' counts the keys that are visible: causal in global layers, causal and windowed in local
    ones. 'full_square' counts T keys for every query of every layer, 12·L·D·T, as PaLM (appendix B)
    and most published MFU figures do.
    """
    n = self.num_params() - self.max_position_embeddings * self.hidden_size
    if not self.tie_word_embeddings:
      n -= self.vocab_size * self.hidden_size
    keys = sum(self._visible_keys(kind, seq_len, attention) for kind in self.attention_layers)
    return 6.0 * n + 12.0 * self.hidden_size * keys

  def _visible_keys(self, kind: str, seq_len: int, attention: str) -> float:
    """Keys that a query of one layer attends to, averaged over the sequence."""
    if attention == "full_square":
      return seq_len
    if attention != "exact":
      raise ValueError(f"attention is {attention!r}; it must be 'exact' or 'full_square'")
    window = min(self.window_size, seq_len) if kind == "local" else seq_len
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len

  # --- to and from dictionaries ---------------------------------------------------------------

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
    """Builds a config; an unknown key raises ValueError with the nearest valid name."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in fields:
      if key not in names:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model setting {key!r}{hint}")
    return cls(**fields)

  def to_dict(self) -> dict[str, Any]:
    return {**dataclasses.asdict(self), "attention_pattern": list(self.attention_pattern)}

  def differences(self, other: ModelConfig) -> list[str]:
    """The fields, 'name: ours != theirs', in which `other` is a different model."""
    return [
      f"{f.name}: {getattr(self, f.name)!r} != {getattr(other, f.name)!r}"
      for f in dataclasses.fields(self)
      if f.name not in _EXECUTION_FIELDS and getattr(self, f.name) != getattr(other, f.name)
    ]


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
