"""Attention: one function, `attend`, several backends, and the mask that they share."""

from gptneo_jax.attention.api import BACKENDS, KERNELS, attend, resolve, unsupported_reason
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.reference import probabilities
from gptneo_jax.attention.request import AttentionRequest
from gptneo_jax.attention.residuals import RESIDUALS, residuals_saveable

__all__ = [
  "BACKENDS",
  "KERNELS",
  "RESIDUALS",
  "AttentionRequest",
  "Dropout",
  "MaskSpec",
  "attend",
  "probabilities",
  "residuals_saveable",
  "resolve",
  "unsupported_reason",
]
