"""Attention backends behind one `attend`, and the mask they share."""

from gptneo_jax.attention.api import BACKENDS, attend, resolve
from gptneo_jax.attention.dropout import Dropout
from gptneo_jax.attention.mask import MaskSpec
from gptneo_jax.attention.reference import probabilities

__all__ = ["BACKENDS", "Dropout", "MaskSpec", "attend", "probabilities", "resolve"]
