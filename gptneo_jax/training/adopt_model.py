"""Takes the model of a fine-tuning run from the weights that it starts from."""

from __future__ import annotations

import os

from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import interop
from gptneo_jax.checkpoints.folder import is_checkpoint_folder, load_config
from gptneo_jax.checkpoints.step_folders import find_checkpoint, latest_step
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.examples import task_file

# Models of the hub whose settings need not be fetched.
PUBLISHED = {
  "EleutherAI/gpt-neo-125m": "neo_125m",
  "EleutherAI/gpt-neo-1.3B": "neo_1p3b",
  "EleutherAI/gpt-neo-2.7B": "neo_2p7b",
  "openai-community/gpt2": "gpt2_small",
  "openai-community/gpt2-medium": "gpt2_medium",
  "openai-community/gpt2-large": "gpt2_large",
  "openai-community/gpt2-xl": "gpt2_xl",
  "gpt2": "gpt2_small",
}

# Settings of model.* that make the model that it is; all others are the run's own: how it
# computes, its dropout, its head and the labels of that.
ADOPTED = (
  "model_type", "vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads",
  "intermediate_size", "attention_pattern", "window_size", "activation_function",
  "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_norm_epsilon",
  "tie_word_embeddings", "initializer", "initializer_range",
)  # fmt: skip


# What a task with examples settles when it has read them.
OF_THE_DATA = ("vocab_size", "num_labels", "id2label", "problem_type", "pad_token_id")


def adopt_model(config: ConfigDict, workdir: epath.PathLike | None = None) -> ConfigDict:
  """The config with the model of its init_from, where config.adopt_model says so; a locked copy.

  A run that resumes in `workdir` takes its own, and in any case the labels that it learns and the
  tokens that it has added. Raises UserError if there is no such model.
  """
  if config.adopt_model and not config.init_from:
    raise UserError("adopt_model takes the model of init_from, and that is empty")
  names = ADOPTED if config.adopt_model else ()
  if workdir is not None and latest_step(workdir) is not None:
    learns_examples = (epath.Path(workdir) / task_file.FILE).exists()
    if not (config.adopt_model or learns_examples):
      return config
    source, names = load_config(workdir), (*names, *OF_THE_DATA)
  elif config.adopt_model:
    source = settings_of(config.init_from)
  else:
    return config
  adopted = config.copy_and_resolve_references().unlock()
  adopted.model.update({name: getattr(source, name) for name in names})
  return adopted.lock()


def settings_of(name: str) -> ModelConfig:
  """The settings of a model: a folder of ours, a Hugging Face folder, or a hub id."""
  if name in PUBLISHED and not os.path.exists(name):
    return PRESETS[PUBLISHED[name]]
  folder, _ = find_checkpoint(name)
  return load_config(folder) if is_checkpoint_folder(folder) else interop.open_hf(folder).config
