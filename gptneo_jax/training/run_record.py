"""run_config.json: what a run was started with, and what has changed where it is resumed."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data
from gptneo_jax.checkpoints.folder import is_checkpoint_folder, load_config
from gptneo_jax.checkpoints.step_folders import RUN_CONFIG, latest_step
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.evals.provenance import versions
from gptneo_jax.training.adopt_model import OF_THE_DATA
from gptneo_jax.training.run_config import flat

_PACKAGES = (
  "gptneo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
  "tokenizers", "transformers",
)  # fmt: skip

_DATA_SET = "data set "  # before its name, among what was read from the hub

# Settings that a run keeps, and why. The model itself is recorded in config.json.
_FIXED = {
  **dict.fromkeys(
    ("batch_size", "seq_len", "seed", *(f"data.{name}" for name in data.ORDER_SETTINGS)),
    "the order of its data follows from that",
  ),
  "task": "its state is of that",
  "optimizer.name": "the optimizer's state is of that",
  **dict.fromkeys(
    ("frozen", *(f"lora.{name}" for name in ("rank", "alpha", "rslora", "targets", "base"))),
    "what learns follows from that",
  ),
  "init_from": "it resumes from its own checkpoints",
}


def of(config: ConfigDict, num_streams: int, command: Sequence[str]) -> dict[str, Any]:
  """The record of a start: settings, command, versions, commit if it runs from a checkout.

  num_streams: their number, which the config may leave to the batch size.
  """
  settings = config.to_dict()
  settings["data"]["num_streams"] = num_streams
  record = {
    "config": settings,
    "command": list(command),
    "versions": versions(_PACKAGES),
    "commit": _commit(),
  }
  return json.loads(json.dumps(record))  # as it looks when read: lists for tuples


def changes(workdir: epath.Path, record: dict[str, Any], model: ModelConfig) -> list[str]:
  """What is different from the run that a folder holds, 'NAME: OLD -> NEW'; [] for a new run.

  Raises UserError for what cannot be: another model, or another of the settings that a run keeps.
  """
  step = latest_step(workdir)
  if step is None:
    if (workdir / "config.json").exists() and not is_checkpoint_folder(workdir):
      raise UserError(
        f"{workdir} holds another program's config.json, as a Hugging Face model does, which a run"
        f" would replace. {start_anew(workdir)}"
      )
    return []
  anew = start_anew(workdir)
  differences = model.differences(load_config(workdir))
  if differences:
    raise UserError(
      f"{workdir} holds a different model ({'; '.join(differences)}); choose another --workdir"
    )
  if not (workdir / str(step) / "optimizer").exists():
    raise UserError(f"{workdir} holds the weights of a model, and not a run to resume. {anew}")
  before = _read(workdir)
  if before is None:
    return []
  was, now = (flat(ConfigDict(each["config"])) for each in (before, record))
  compared = {**was, **now}.keys() - {f"model.{name}" for name in OF_THE_DATA}  # above
  changed = [name for name in {**was, **now} if name in compared and was.get(name) != now.get(name)]
  fixed = [name for name in changed if name in _FIXED]
  if fixed:
    reasons = "; ".join(
      f"{name} {was.get(name)!r}, not {now.get(name)!r}: {_FIXED[name]}" for name in fixed
    )
    raise UserError(
      f"the run in {workdir} keeps what it began with ({reasons}). What may change: steps, learning"
      " rate, schedule, decay, clipping, dropout, intervals, evaluation, devices and what saves"
      f" memory. {anew}"
    )
  lines = [f"{name}: {was.get(name)!r} -> {now.get(name)!r}" for name in changed]
  for name in {**before["versions"], **record["versions"]}:
    old, new = (each["versions"].get(name) for each in (before, record))
    if old != new:
      lines.append(f"version of {name}: {old} -> {new}")
  if before["commit"] != record["commit"]:
    lines.append(f"commit: {before['commit']} -> {record['commit']}")
  return lines


def hub_commits(config: ConfigDict) -> dict[str, str]:
  """The commits of what a start has read from the Hugging Face hub, by what names it."""
  models = {"init_from": config.init_from, "data.tokenizer": config.data.tokenizer}
  found = {name: data.commit_of_model(value) for name, value in models.items() if value}
  source, mixture = config.data.source, config.data.mixture
  paths = [config.data.path, config.data.validation_path, config.data.test_path]
  named = [path for path in paths if source == "datasets"]
  for path in [*named, *(path for _, kind, path in mixture if kind == "datasets")]:
    name = path.partition("#")[0]
    if name:
      found[f"{_DATA_SET}{name}"] = data.commit_of_dataset(name)
  return {name: commit for name, commit in found.items() if commit}


def moved(workdir: epath.Path, record: dict[str, Any]) -> list[str]:
  """Which data sets of the hub have another commit than when the run was last started.

  The record keeps the commits of what the run no longer reads: it has weights and a tokenizer.
  """
  before = (_read(workdir) or {}).get("hub", {})
  hub = record["hub"]
  lines = [
    f"commit of {name}: {before[name]} -> {hub[name]}"
    for name in hub
    if _is_data(name) and before.get(name, hub[name]) != hub[name]
  ]
  kept = {name: commit for name, commit in before.items() if not _is_data(name)}
  record["hub"] = kept | {name: commit for name, commit in hub.items() if _is_data(name)}
  return lines


def _is_data(name: str) -> bool:
  return name.startswith(_DATA_SET)


def start_anew(workdir: epath.PathLike) -> str:
  """Advice on starting a new run from the weights of this one."""
  return (
    "To start anew from its weights, give the same command with"
    f" --workdir NEW --config.init_from={workdir}"
  )


def write(workdir: epath.Path, record: dict[str, Any], changed: Sequence[str], step: int) -> None:
  """Writes the record, with the changes that a run has seen, each with the step it came at."""
  before = _read(workdir) if step else None
  history = before.get("changes", []) if before else []
  history += [f"step {step}: {line}" for line in changed]
  part = workdir / f"{RUN_CONFIG}.part"  # renamed: a process killed here leaves the old one
  part.write_text(json.dumps(record | {"changes": history}, indent=2) + "\n")
  part.replace(workdir / RUN_CONFIG)


def _read(workdir: epath.Path) -> dict[str, Any] | None:
  try:
    return json.loads((workdir / RUN_CONFIG).read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(
      f"{workdir / RUN_CONFIG} cannot be read ({error}); without it the run resumes, and nothing"
      " is compared"
    ) from None


def _commit() -> str | None:
  """The commit of the checkout that this package is in, with a + if files of it were changed."""
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / ".git").exists():  # of an installed package, .git above it is another's
    return None

  def git(*arguments: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None
