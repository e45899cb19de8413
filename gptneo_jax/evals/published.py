"""Published figures of GPT-Neo, to compare with.

Source: the README of EleutherAI/gpt-neo, "Linguistic Reasoning" and "Physical and Scientific
Reasoning"; accuracies in percent. Its Pile and Wikitext figures are of its own evaluator (token
perplexity in windows of 2048, z-loss in it), not of lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptneo_jax.config import PRESETS

SOURCE = "the README of EleutherAI/gpt-neo"

COLUMNS = (
  "Pile BPB", "Pile PPL", "Wikitext PPL", "LAMBADA PPL", "LAMBADA acc", "Winogrande", "HellaSwag",
  "MathQA", "PubMedQA", "PIQA",
)  # fmt: skip

_SHAPE = ("model_type", "hidden_size", "num_layers", "num_heads")
_NAMES = {
  "neo_125m": "GPT-Neo 125M",
  "neo_350m": "GPT-Neo 350M",
  "neo_1p3b": "GPT-Neo 1.3B",
  "neo_2p7b": "GPT-Neo 2.7B",
}
ROWS: dict[str, tuple[float | None, ...]] = {
  "GPT-Neo 125M": (None, None, 32.285, 30.266, 37.36, 50.43, 28.67, 22.78, 55.10, 63.06),
  "GPT-Neo 350M": (None, None, 22.5657, 13.876, 47.27, 51.14, 32.16, 23.45, 53.80, 65.07),
  "GPT-Neo 1.3B": (0.7527, 6.159, 13.10, 7.498, 57.23, 55.01, 38.66, 24.05, 54.40, 71.11),
  "GPT-Neo 2.7B": (0.7165, 5.646, 11.39, 5.626, 62.22, 56.50, 42.73, 24.72, 57.54, 72.14),
}


def rows_for(model: Mapping[str, Any]) -> dict[str, tuple[float | None, ...]]:
  """The row of the released model of the same shape; all rows if there is none.

  model: fields of a ModelConfig.
  """
  for preset, name in _NAMES.items():
    released = PRESETS[preset].to_dict()
    if all(model.get(field) == released[field] for field in _SHAPE):
      return {name: ROWS[name]}
  return ROWS


def in_units(column: str, value: float) -> float:
  """A measured value in the table's units: accuracies in %, which the harness gives as shares."""
  return value if column.endswith(("BPB", "PPL")) else 100 * value
