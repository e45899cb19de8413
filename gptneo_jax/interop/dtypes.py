"""The types that weights are stored in, and casting between them."""

from __future__ import annotations

import logging

import jax.numpy as jnp
import numpy as np

from gptneo_jax.config import FLOAT_TYPES
from gptneo_jax.errors import UserError

FLOATS = {name: jnp.dtype(name) for name in FLOAT_TYPES}

_log = logging.getLogger(__name__)


class Caster:
  """Casts arrays, and warns once for each that holds NaN or infinities."""

  def __init__(self):
    self._warned: set[str] = set()

  def __call__(self, array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in another type. Raises UserError if a finite number becomes infinite."""
    finite = np.isfinite(array)
    if not finite.all() and name not in self._warned:
      self._warned.add(name)
      _log.warning("%s holds %d numbers that are not finite", name, (~finite).sum())
    if array.dtype == dtype:
      return array
    with np.errstate(over="ignore"):
      result = array.astype(dtype)
    if (np.isfinite(result) != finite).any():
      raise UserError(f"{name} has values beyond the range of {dtype}: choose another --dtype")
    return result
