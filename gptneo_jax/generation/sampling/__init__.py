"""From logits to tokens: options, processors and filters, named and ordered as transformers'."""

from gptneo_jax.generation.sampling.options import GenerationOptions, LogitsProcessor
from gptneo_jax.generation.sampling.pipeline import Plan, Stage, apply, choose, make_plan
from gptneo_jax.generation.sampling.processors import History

__all__ = [
  "GenerationOptions",
  "History",
  "LogitsProcessor",
  "Plan",
  "Stage",
  "apply",
  "choose",
  "make_plan",
]
