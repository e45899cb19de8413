"""Folders of LoRA runs: the base once, and in each checkpoint only what learns.

  FOLDER/lora.json         what factors there are (`LoraConfig`): it says that a folder is of a run
                           of LoRA
  FOLDER/base              the model that the run started from, a folder of ours with its step 0
  FOLDER/STEP/params       factors as `methods.split` has them, and a head
  FOLDER/adapter           the newest of them in PEFT's files (training/run_state.py)

Whatever reads such a folder gets the model with the factors merged (`reading.restore_params`,
`lazy.open_params`).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from gptneo_jax.checkpoints import manifest
from gptneo_jax.checkpoints.folder import save_config
from gptneo_jax.checkpoints.quiet import quiet_orbax
from gptneo_jax.checkpoints.step_folders import absolute
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.model import lora
from gptneo_jax.model.lora import LoraConfig

FILE = "lora.json"
BASE = "base"
ADAPTER = "adapter"


def settings_of(folder: epath.PathLike) -> LoraConfig | None:
  """What LoRA a folder is of, None if it is not of LoRA. Raises UserError for a damaged file."""
  path = absolute(folder) / FILE
  if not path.exists():
    return None
  try:
    return LoraConfig(**json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None


def save_base(
  folder: epath.PathLike, config: ModelConfig, params: Any, settings: LoraConfig
) -> None:
  """Makes a folder one of LoRA: writes the base, in place of one that is there, and the settings.

  All processes of a run call it alike.
  """
  base = absolute(folder) / BASE
  with quiet_orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      base / "0", args=ocp.args.Composite(params=ocp.args.StandardSave(params)), force=True
    )
  if jax.process_index() == 0:
    manifest.write(base / "0", permanent=True)
    save_config(base, config)
    text = json.dumps(dataclasses.asdict(settings), indent=2)
    (absolute(folder) / FILE).write_text(text + "\n")


def adapter_of(learned: dict[str, Any], settings: LoraConfig) -> dict[str, Any]:
  """What a checkpoint holds, as an adapter (model/lora.py)."""
  return lora.combine(lora.scales(learned, settings.scale), learned)
