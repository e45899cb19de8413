"""A tensor of a Hugging Face file, read when it is asked for."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A stored tensor, by PyTorch's name and layout."""

  shape: tuple[int, ...]
  dtype: np.dtype
  file: pathlib.Path
  read: Callable[[], np.ndarray]
