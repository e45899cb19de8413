"""A report of every kind of result, changed copies of it, and the cells of its tables."""

import copy

from gptneo_jax.config import PRESETS

FIGURES = {
  "loss": 2.5, "perplexity": 12.182, "word_perplexity": 3.1e7, "byte_perplexity": 2.3,
  "bits_per_byte": 1.2025, "accuracy": 0.375, "documents": 1203, "tokens": 4096, "words": 900,
  "bytes": 12000,
}  # fmt: skip
REPORT = {
  "date": "2026-01-01T00:00:00+00:00",
  "arguments": {"checkpoint": "runs/mine", "quantization": "int8", "limit": 400},
  "checkpoint": {"name": "runs/mine", "step": 70, "sha256": {"70/params/a": "00"}},
  "model": PRESETS["neo_1p3b"].to_dict(),
  "parameters": 1_315_575_808,
  "versions": {"gptneo_jax": "0.1.0", "jax": "0.10"},
  "hardware": {"device": "TPU v5e (tpu)", "mesh": {"data": 8, "fsdp": 1, "tensor": 1}},
  "seed": 0,
  "tokenizer": "0123456789abcdef",
  "data": {
    "source": "pile/test.jsonl.zst", "windows": "disjoint windows of 2048 tokens",
    "by_position": [
      {"from": 1, "to": 1, "tokens": 90, "loss": 5.0},
      {"from": 257, "to": 2048, "tokens": 4006, "loss": 2.4},
    ],
    "calibration": [{"from": 0.3, "to": 0.4, "tokens": 4096, "confidence": 0.35, "accuracy": 0.37}],
    "calibration_error": 0.02,
  },
  "tasks": {
    "missing": {"mathqa": "no data"},
    "num_fewshot": {"lambada": 5},
    "items": {"lambada": 400},
    "columns": [
      {"column": "LAMBADA PPL", "task": "lambada", "metric": "perplexity", "value": 7.498},
      {"column": "LAMBADA acc", "task": "lambada", "metric": "acc", "value": 0.5723},
      {"column": "MathQA", "task": "mathqa", "metric": "acc", "value": None},
    ],
  },
  "results": {
    "data": FIGURES,
    "data/Books|3": {**FIGURES, "loss": 3.25},
    "lambada": {"perplexity": 7.498, "acc": 0.5723, "acc_stderr": 0.0068},
  },
}  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
  """The cells of each table row, by the first."""
  lines = [line for line in text.splitlines() if line.startswith("| ")]
  cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
  return {first: rest for first, *rest in cells}


def changed(**places) -> dict:
  """The report with other values, at places such as `data__windows`."""
  other = copy.deepcopy(REPORT)
  for place, value in places.items():
    *path, last = place.split("__")
    part = other
    for key in path:
      part = part[key]
    part[last] = value
  return other
