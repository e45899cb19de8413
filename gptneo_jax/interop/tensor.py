"""A tensor in a Hugging Face file that has not been read yet."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A stored tensor in PyTorch's layout; `read` reads it from the file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  file: pathlib.Path
  read: Callable[[], np.ndarray]
