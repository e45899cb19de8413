"""Starts the training program as a user does, on a model small enough for many runs."""

import json
import os
import pathlib
import random
import subprocess
import sys
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from gptneo_jax.checkpoints.quiet import quiet_orbax
from gptneo_jax.training import config_file
from tests.helpers import compiling

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

SMALL = {
  "model.hidden_size": 32,
  "model.num_layers": 2,
  "model.num_heads": 2,
  "model.vocab_size": 300,
  "model.max_position_embeddings": 32,
  "model.window_size": 8,
  "seq_len": 32,
  "batch_size": 8,
  "steps": 12,
  "log_every": 1,
  "eval_every": 0,
  "checkpoint_every": 4,
  "schedule.warmup_steps": 4,
  "schedule.decay_steps": 12,
  "optimizer.name": "adamw",
  "optimizer.learning_rate": 1e-3,
  "optimizer.rates": "",
  "eval.documents": 4,
  "eval.sample_tokens": 0,
  "eval.baselines": False,
  "data.num_streams": 8,
}


def write_corpus(folder: pathlib.Path) -> str:
  """Shards of Pile-format lines with two subsets; returns their glob."""
  chance = random.Random(0)
  words = "the quick brown fox jumps over a lazy dog while seven wizards watch it closely".split()
  for shard in range(4):
    with open(folder / f"{shard}.jsonl", "w", encoding="utf-8") as file:
      for number in range(150):
        text = " ".join(chance.choices(words, k=chance.randint(5, 120)))
        meta = {"pile_set_name": ("Prose", "Verse")[number % 2]}
        file.write(json.dumps({"text": text, "meta": meta}) + "\n")
  return str(folder / "*.jsonl")


def train_command(workdir, *, config: str = "configs/tiny.py", **settings) -> list[str]:
  """The command of a run; settings with '__' for '.', on top of SMALL."""
  flags = [f"--config.{name}={value}" for name, value in _merged(settings).items()]
  start = [sys.executable, "-m", "gptneo_jax.train", "--config", config]
  return [*start, f"--workdir={workdir}", *flags]


def config(**settings) -> ConfigDict:
  """What the program makes of the same command."""
  made = config_file.load(str(REPOSITORY / "configs" / "tiny.py"))
  made.update_from_flattened_dict(_merged(settings))
  return made


def _merged(settings: dict[str, Any]) -> dict[str, Any]:
  return SMALL | {name.replace("__", "."): value for name, value in settings.items()}


def environment(devices: int = 1) -> dict[str, str]:
  return os.environ | compiling.on_devices(devices)


def train(workdir, *, devices: int = 1, **settings) -> subprocess.CompletedProcess:
  """Runs to the end."""
  return subprocess.run(
    train_command(workdir, **settings),
    cwd=REPOSITORY, env=environment(devices), capture_output=True, text=True, timeout=300,
  )  # fmt: skip


def metrics(workdir) -> list[dict]:
  return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").open()]


def losses(workdir) -> list[float]:
  return [line["train/loss"] for line in metrics(workdir)]


def arrays(workdir, step: int) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, by item and path."""
  found = {}
  for item in ("params", "optimizer"):
    path = pathlib.Path(workdir).absolute() / str(step) / item
    with quiet_orbax(), ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about shardings, of which there is one here
      plain = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
      stored = reader.metadata(path).item_metadata.tree
      tree = reader.restore(path, restore_args=jax.tree.map(plain, stored))
    paths = ocp.tree.to_flat_dict(tree, sep="/")
    found |= {f"{item}/{path}": np.asarray(leaf) for path, leaf in paths.items()}
  return found


def assert_bitwise_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert one.keys() == other.keys() and len(one) > 20
  for name, array in one.items():
    assert array.dtype == other[name].dtype and array.tobytes() == other[name].tobytes(), name
