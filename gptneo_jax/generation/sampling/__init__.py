"""From logits to tokens: options, processors and filters, named and ordered as transformers'."""

from gptneo_jax.generation.sampling.options import GenerationOptions, LogitsProcessor
from gptneo_jax.generation.sampling.pipeline import (
  LogitsPipeline,
  Processor,
  common_form,
  common_forms,
  make_pipeline,
  process_logits,
  sample_token,
)
from gptneo_jax.generation.sampling.processors import History

__all__ = [
  "GenerationOptions",
  "History",
  "LogitsPipeline",
  "LogitsProcessor",
  "Processor",
  "common_form",
  "common_forms",
  "make_pipeline",
  "process_logits",
  "sample_token",
]
