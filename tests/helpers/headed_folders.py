"""Folders of small models with heads and a task.json, of random weights."""

from __future__ import annotations

import pathlib

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.examples import TaskSpec, task_file
from tests.helpers.packed_checks import small_model
from tests.helpers.small_tokenizers import trained_tokenizer


def save(folder: pathlib.Path, spec: TaskSpec, head: str, vocab_size: int = 323, **fields) -> str:
  """Writes a model whose weights are spread enough to tell inputs apart; returns its folder."""
  lm = gptneo_jax.init(small_model(head, vocab_size, initializer_range=0.3, **fields), seed=0)
  lm.tokenizer = trained_tokenizer()
  lm.save(str(folder))
  data.save_tokenizer(trained_tokenizer(), str(folder))
  task_file.save(folder, spec)
  return str(folder)


def spam(folder: pathlib.Path) -> str:
  """Two labels, texts of at most 32 tokens."""
  spec = TaskSpec(
    "sequence_classification", 32, 32, columns="text=message", labels=("ham", "spam"),
    problem="single_label_classification",
  )  # fmt: skip
  return save(
    folder, spec, "sequence_classification", num_labels=2, id2label=spec.labels,
    problem_type=spec.problem, pad_token_id=0,
  )  # fmt: skip
