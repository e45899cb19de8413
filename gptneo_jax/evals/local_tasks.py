"""Harness tasks that need no network: on files of a folder, and on Python's own manual."""

from __future__ import annotations

import glob
import importlib.resources
import os
import platform
import re
from collections.abc import Callable
from typing import Any

from gptneo_jax.evals import task_sets

_PAGE_CHARACTERS = 1500  # of a page of the manual; the rest is dropped
_MIN_WORDS = 12  # of a sentence, so that its last word can be guessed


class MissingData(Exception):
  """A task has no data; the message says why, in one line."""


def names() -> list[str]:
  folder = importlib.resources.files(task_sets).joinpath("local")
  return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def find_file(name: str, folder: str | None) -> str | None:
  """The data file of a task in `folder`; None if there is none.

  It is NAME.jsonl, or a sample of it such as NAME_400.jsonl; either may be compressed (.zst).
  """
  pattern = task_sets.read(f"local/{name}").get("file")
  if pattern is None or folder is None:
    return None
  stem, suffix = os.path.splitext(pattern)
  base = os.path.join(glob.escape(os.path.abspath(os.path.expanduser(folder))), stem)
  for form in (suffix, f"_*{suffix}", f"{suffix}.zst", f"_*{suffix}.zst"):
    found = sorted(glob.glob(base + form))
    if found:
      return found[0]
  return None


def config(name: str, folder: str | None, tokenizer: Any, positions: int) -> dict[str, Any]:
  """The task's config as `TaskManager.load` takes it. Raises MissingData.

  positions: of the model; a text that has no documents is cut into windows of at most as many
    tokens.
  """
  fields = task_sets.read(f"local/{name}")
  pattern, windows = fields.pop("file", None), fields.pop("windows", False)
  file = find_file(name, folder)
  if pattern is not None and file is None:
    where = f"{folder} has none" if folder else "give the folder that has it (task_data)"
    raise MissingData(f"needs {pattern}; {where}")
  if file is None:
    fields["custom_dataset"] = _dataset(_MANUAL[name])
    fields["metadata"] = {"version": f"Python {platform.python_version()}"}
  elif windows:
    with open(file, encoding="utf-8") as opened:
      text = opened.read()
    fields["custom_dataset"] = _dataset(lambda: cut(text, tokenizer, positions))
  else:
    fields |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}}
  if fields["output_type"] == "loglikelihood_rolling":
    _register_token_perplexity()
    fields["process_results"] = _per_unit(
      [metric["metric"] for metric in fields["metric_list"]], tokenizer
    )
  return fields


def cut(text: str, tokenizer: Any, size: int) -> list[str]:
  """Cuts a text into consecutive pieces of at most `size` tokens, between words.

  Tokens are those of the uncut text. A single word that is longer is a piece of its own.
  """
  encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
  words, ends = encoding.word_ids, [end for _, end in encoding.offsets]
  pieces = []
  piece_token = piece_character = 0  # where the current piece begins
  word_token = 0  # where the current word begins
  for i in range(1, len(words)):
    if words[i] != words[i - 1]:
      word_token = i
    if i - piece_token >= size and word_token > piece_token:
      end = ends[word_token - 1]
      pieces.append(text[piece_character:end])
      piece_character, piece_token = end, word_token
  return [*pieces, text[piece_character:]] if text[piece_character:] else pieces


def _per_unit(metrics: list[str], tokenizer: Any) -> Callable[[dict, list], dict]:
  """A `process_results`: (log-likelihood, number of units) of a document for each metric, with the
  units counted as the harness does."""

  def process_results(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    text, (logprob,) = doc["text"], results
    tokens = len(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    size = len(text.encode())
    units = {
      "token_perplexity": tokens,
      "word_perplexity": len(re.split(r"\s+", text)),
      "byte_perplexity": size,
      "bits_per_byte": size,
    }
    return {metric: (logprob, units[metric]) for metric in metrics}

  return process_results


def _register_token_perplexity() -> None:
  from lm_eval.api.registry import metric_registry, register_metric

  if "token_perplexity" not in metric_registry:
    register_metric(
      metric="token_perplexity",
      higher_is_better=False,
      output_type="loglikelihood_rolling",
      aggregation="weighted_perplexity",
    )(lambda items: items)


def _dataset(texts: Callable[[], list[str]]) -> Callable[..., dict[str, Any]]:
  def load(**_) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list([{"text": text} for text in texts()])}

  return load


def _manual() -> list[str]:
  try:
    from pydoc_data.topics import topics
  except ModuleNotFoundError:  # left out by some distributions
    raise MissingData("this Python has no manual (pydoc_data)") from None
  return [topics[name] for name in sorted(topics)]


def _pages() -> list[str]:
  return [page[:_PAGE_CHARACTERS] for page in _manual()]


def _sentences() -> list[str]:
  """The first paragraph of prose of each page, without the full stop at its end."""
  found = []
  for page in _manual():
    for paragraph in page.split("\n\n"):
      text = " ".join(paragraph.split())
      words = text.removesuffix(".").split(" ")
      prose = text.endswith(".") and not paragraph.startswith((" ", "*", "-", "\n"))
      if prose and len(words) >= _MIN_WORDS and words[-1].isalpha():
        found.append(" ".join(words))
        break
  return found


_MANUAL = {"stdlib_text": _pages, "stdlib_cloze": _sentences}
