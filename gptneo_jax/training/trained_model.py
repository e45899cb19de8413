"""The model in training as what a user has of it: a language model that generates text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from gptneo_jax.engine import LanguageModel
from gptneo_jax.model import lora
from gptneo_jax.model.parameters import abstract_params
from gptneo_jax.model_io import LoadedModel
from gptneo_jax.training.setup import Run


def make(run: Run, tokenizer: Any) -> Callable[[Any], LanguageModel]:
  """A function of the parameters of a step to the model; factors are added to their kernels.

  Decoding runs on plain weights.
  """
  abstract = abstract_params(run.module, run.mesh)
  cast = lambda params: jax.tree.map(lambda x, to: x.astype(to.dtype), lora.merge(params), abstract)
  merge = jax.jit(cast, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))

  def language_model(params: Any) -> LanguageModel:
    plain = params if run.method.lora is None else merge(params)
    lm = LanguageModel(LoadedModel(run.model_config, plain), run.mesh)
    lm.tokenizer = tokenizer
    return lm

  return language_model
