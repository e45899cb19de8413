"""Attention backends behind one `attend`, and the mask they share."""

from gptneo_jax.attention.api import BACKENDS, KERNELS, attend, refusal, resolve
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.reference import probabilities
from gptneo_jax.attention.request import Request
from gptneo_jax.attention.residuals import RESIDUALS, residuals_saveable

__all__ = [
  "BACKENDS",
  "KERNELS",
  "RESIDUALS",
  "Dropout",
  "MaskSpec",
  "Request",
  "attend",
  "probabilities",
  "refusal",
  "residuals_saveable",
  "resolve",
]
