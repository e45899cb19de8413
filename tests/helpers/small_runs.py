"""A run in this process, small enough for many, and what it wrote."""

import json
import pathlib

from ml_collections import ConfigDict

from gptneo_jax.config import ModelConfig
from gptneo_jax.training import run_config


def write_jsonl(path: pathlib.Path, texts: list[str]) -> str:
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
  return str(path)


def texts(number: int, start: int = 0) -> list[str]:
  return [
    f"document {n} says that {n * n} is the square of {n}" for n in range(start, start + number)
  ]


def small_config(folder: pathlib.Path, **changes) -> ConfigDict:
  """Six steps on documents that are written to `folder`; changes with '__' for '.'."""
  config = run_config.base(
    ModelConfig(
      hidden_size=16, num_layers=1, num_heads=2, vocab_size=300, max_position_embeddings=16,
      attention_pattern=("global",),
    )
  )  # fmt: skip
  config.update(steps=6, batch_size=4, eval_every=2, checkpoint_every=4, log_every=1)
  config.schedule.update(warmup_steps=2, decay_steps=6)
  config.data.update(path=write_jsonl(folder / "train.jsonl", texts(60)), num_streams=2)
  config.data.update(tokenizer="train", validation_path=write_jsonl(folder / "val.jsonl", texts(9)))
  config.eval.update(sample_tokens=0, batch_size=8)
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config


def lines(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").open(encoding="utf-8")]


def exact(workdir: pathlib.Path) -> list[dict]:
  """The lines without what depends on the clock."""
  return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines(workdir)]


def evaluated(workdir: pathlib.Path, step: int) -> dict:
  return json.loads((workdir / str(step) / "metrics" / "metrics").read_text("utf-8"))
