"""Import and export of Hugging Face models in all their file formats, and of PEFT's adapters."""

from gptneo_jax.interop.hf_export import export_adapter, orbax_to_hf
from gptneo_jax.interop.hf_import import HuggingFaceModel, hf_to_orbax, open_hf
from gptneo_jax.interop.verification import REPORT, TOLERANCE, first_not_finite, verify

__all__ = [
  "REPORT",
  "TOLERANCE",
  "HuggingFaceModel",
  "export_adapter",
  "first_not_finite",
  "hf_to_orbax",
  "open_hf",
  "orbax_to_hf",
  "verify",
]
