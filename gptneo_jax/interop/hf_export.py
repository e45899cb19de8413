"""Writes checkpoints as folders that transformers opens."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from gptneo_jax.checkpoints import adapters
from gptneo_jax.checkpoints.folder import load_config
from gptneo_jax.checkpoints.lazy import LazyArray, open_params, read_learned
from gptneo_jax.checkpoints.step_folders import existing_step, find_checkpoint
from gptneo_jax.config import VOCABULARY_TABLES, ModelConfig
from gptneo_jax.data import end_of_text_id, load_tokenizer
from gptneo_jax.errors import UserError
from gptneo_jax.interop import name_map, peft_files
from gptneo_jax.interop.atomic_folder import new_folder
from gptneo_jax.interop.dtypes import FLOATS, Caster
from gptneo_jax.interop.hf_config import CLASSES, to_hf
from gptneo_jax.interop.hf_files import TOKENIZER_FILES
from gptneo_jax.interop.hf_import import GENERATION_CONFIG, HF_CONFIG
from gptneo_jax.interop.safetensors_file import write_safetensors
from gptneo_jax.interop.tokenizer_files import copy_tokenizer, missing_tokenizer

MAX_SHARD_BYTES = 5_000_000_000  # of one file of weights

_PIPELINES = {
  "lm": "text-generation",
  "sequence_classification": "text-classification",
  "token_classification": "token-classification",
  "question_answering": "question-answering",
  "double_heads": "multiple-choice",
}

Item = TypeVar("Item")


def orbax_to_hf(
  source: str | os.PathLike,
  destination: str | os.PathLike,
  *,
  step: int | str | None = None,
  dtype: str | None = None,
  transform: Callable[[ModelConfig, str, LazyArray], LazyArray] | None = None,
  tokenizer: bool = True,
  tokenizer_from: str | None = None,
  chat_template: str | None = None,
  beside: Mapping[str, str] | None = None,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes a checkpoint as a Hugging Face model: weights, configs, tokenizer and model card.

  Holds a few tensors in memory, never the model. `destination` appears complete or not at all.

  Args:
    source: a checkpoint folder, or FOLDER/STEP.
    destination: a new or empty folder.
    step: number of the checkpoint, or 'best'; default the newest.
    dtype: 'float32', 'bfloat16' or 'float16'; default the type stored.
    transform: called with the config, each parameter's path and array; returns the array to write.
    tokenizer: whether a tokenizer is written; if so, a source without one is refused.
    tokenizer_from: folder or hub id of the tokenizer; default the source's own.
    chat_template: of the tokenizer, as transformers' apply_chat_template reads it.
    beside: files to write beside the model, name -> text.
    progress: called with the bytes written so far and the total.

  Raises:
    UserError: no such checkpoint or tokenizer, damage, or the destination cannot be written.
  """
  if "://" in str(source):
    raise UserError(f"{source} is not a local folder: copy it to one first, then convert that")
  folder, number = find_checkpoint(source, step)
  source, config = pathlib.Path(folder), load_config(folder)
  step = existing_step(folder, number)
  leaves = open_params(source, step)
  shapes = name_map.leaf_shapes(config)
  _check(source, leaves, shapes, config.vocab_size)
  if transform is not None:
    leaves = {path: transform(config, path, leaf) for path, leaf in leaves.items()}
  if tokenizer and tokenizer_from is None and not (source / "tokenizer.json").is_file():
    raise missing_tokenizer(source)
  config = config.replace(param_dtype=dtype or config.param_dtype)
  target = FLOATS[config.param_dtype]
  entries = name_map.entries(config)
  specs = {e.name: (name_map.hf_shape(e, shapes, config.vocab_size), target) for e in entries}
  total = sum(map(_bytes, specs.values()))
  by_name = {entry.name: entry for entry in entries}
  cast = Caster()

  def arrays(names: Iterable[str]) -> Iterator[np.ndarray]:
    for name in names:
      entry = by_name[name]
      # Cast before transposing: often half the bytes.
      parts = [cast(leaves[path].read(entry.index), target, name) for path in entry.paths]
      yield name_map.to_hf(entry, parts, config.vocab_size)

  done = 0

  def counted(made: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    nonlocal done
    for array in made:
      yield array
      done += array.nbytes
      progress(done, total)

  with new_folder(destination, total) as folder:
    files = split_into_files(specs)
    for file, names in files.items():
      made = counted(_one_ahead(arrays(names)))
      write_safetensors(folder / file, {name: specs[name] for name in names}, made)
    if len(files) > 1:
      _write_json(folder / "model.safetensors.index.json", _index(files, specs, total))
    if tokenizer and tokenizer_from is not None:
      copy_tokenizer(tokenizer_from, folder)
    elif tokenizer:
      for file in TOKENIZER_FILES:
        if (source / file).is_file():
          shutil.copyfile(source / file, folder / file)
    if tokenizer and chat_template is not None:
      _set_chat_template(folder, chat_template)
    for file, text in (beside or {}).items():
      (folder / file).write_text(text, encoding="utf-8")
    original = _original(source, folder if tokenizer else None)
    hf_config = to_hf(config, original, _version("transformers"))
    _write_json(folder / "config.json", hf_config)
    _write_generation_config(source, folder, hf_config)
    (folder / "README.md").write_text(_card(config, step))


def export_adapter(
  source: str | os.PathLike, destination: str | os.PathLike, *, step: int | str | None = None
) -> None:
  """Writes the factors of a checkpoint of LoRA, and its head, as PEFT's two files.

  The base that they are named for is the one that the run started from. Raises UserError for a
  folder of another method.
  """
  folder, number = find_checkpoint(source, step)
  settings = adapters.settings_of(folder)
  if settings is None:
    raise UserError(f"{folder} is no run of LoRA: it has no adapter")
  adapter = adapters.adapter_of(read_learned(folder, number), settings)
  named = pathlib.Path(folder) / adapters.ADAPTER / peft_files.CONFIG_FILE
  base = json.loads(named.read_text())["base_model_name_or_path"] if named.is_file() else None
  with new_folder(destination, 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(adapter))) as made:
    peft_files.write_adapter(
      made, load_config(folder), adapter, base=base, dropout=settings.dropout
    )


def _bytes(spec: tuple[tuple[int, ...], np.dtype]) -> int:
  return math.prod(spec[0]) * spec[1].itemsize


def _check(source, leaves: dict[str, LazyArray], shapes: dict, vocab_size: int) -> None:
  for path in [*shapes, *(path for path in leaves if path not in shapes)]:
    saved: Any = leaves[path].shape if path in leaves else "absent"
    expected = shapes.get(path, "absent")
    if path in leaves and path in VOCABULARY_TABLES and leaves[path].shape[0] >= vocab_size:
      saved = (expected[0], *saved[1:])  # padded to another multiple when it was saved
    if saved != expected:
      raise UserError(
        f"{source}: the checkpoint is of another model than config.json: {path} is {saved} in it,"
        f" and {expected} by config.json"
      )


def split_into_files(specs: dict[str, Any]) -> dict[str, list[str]]:
  """The names of the tensors of each file, by the file's name."""
  groups: list[list[str]] = [[]]
  size = 0
  for name, spec in specs.items():
    if groups[-1] and size + _bytes(spec) > MAX_SHARD_BYTES:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += _bytes(spec)
  if len(groups) == 1:
    return {"model.safetensors": groups[0]}
  count = len(groups)
  return {
    f"model-{number:05d}-of-{count:05d}.safetensors": names
    for number, names in enumerate(groups, start=1)
  }


def _index(files: dict[str, list[str]], specs: dict[str, Any], total: int) -> dict[str, Any]:
  parameters = sum(math.prod(shape) for shape, _ in specs.values())
  weight_map = {name: file for file, names in files.items() for name in names}
  return {
    "metadata": {"total_parameters": parameters, "total_size": total},
    "weight_map": dict(sorted(weight_map.items())),
  }


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
  """The same items; a thread makes the next one while the current one is used."""

  def take() -> list[Item]:  # empty at the end
    return list(itertools.islice(items, 1))

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    following = pool.submit(take)
    while taken := following.result():
      following = pool.submit(take)
      yield taken[0]


def _original(source: pathlib.Path, tokenizer: pathlib.Path | None) -> dict[str, Any]:
  """The config.json that the model was imported with; else the end-of-text id of its tokenizer."""
  if (source / HF_CONFIG).is_file():
    try:
      return json.loads((source / HF_CONFIG).read_text())
    except ValueError as error:
      raise UserError(f"{source / HF_CONFIG} cannot be read: {error}") from None
  end = end_of_text_id(load_tokenizer(str(tokenizer))) if tokenizer else None
  return {"bos_token_id": end, "eos_token_id": end, "use_cache": True}


def _write_generation_config(source: pathlib.Path, folder: pathlib.Path, hf_config) -> None:
  if (source / GENERATION_CONFIG).is_file():
    shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    return
  ids = {name: hf_config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
  _write_json(
    folder / GENERATION_CONFIG,
    {
      "_from_model_config": True,
      **{name: value for name, value in ids.items() if value is not None},
      "transformers_version": hf_config["transformers_version"],
    },
  )


def _set_chat_template(folder: pathlib.Path, chat_template: str) -> None:
  path = folder / "tokenizer_config.json"
  settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  _write_json(path, {**settings, "chat_template": chat_template})
  (folder / "chat_template.jinja").unlink(missing_ok=True)  # of the model before; it would win


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
  return importlib.metadata.version(package)


def _card(config: ModelConfig, step: int) -> str:
  """README.md: the model card."""
  family = {"gpt_neo": "GPT-Neo", "gpt2": "GPT-2"}[config.model_type]
  name = CLASSES[config.head][config.model_type]
  rows = {
    "parameters": f"{config.num_params():,}",
    "layers": f"{config.num_layers} ({', '.join(config.attention_pattern)} attention, repeated)",
    "hidden size": config.hidden_size,
    "heads": config.num_heads,
    "positions": config.max_position_embeddings,
    "vocabulary": config.vocab_size,
    "stored as": config.param_dtype,
  }
  if "local" in config.attention_pattern:
    rows["window of local attention"] = f"{config.window_size} tokens"
  table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
  return f"""---
library_name: transformers
pipeline_tag: {_PIPELINES[config.head]}
tags:
- {config.model_type}
---

# {family} from gptneo_jax

| | |
|---|---|
{table}

Checkpoint {step} of a gptneo_jax folder, converted by version {_version("gptneo_jax")}
of its `python -m gptneo_jax.convert orbax-to-hf`.

```python
from transformers import {name}, AutoTokenizer

model = {name}.from_pretrained("PATH_OR_HUB_ID", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_HUB_ID")
```
"""
