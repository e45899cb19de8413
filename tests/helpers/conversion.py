"""A Hugging Face folder through our format and back, and the message of a refusal."""

import pathlib

import numpy as np
import pytest

from gptneo_jax import interop
from gptneo_jax.errors import UserError
from tests.helpers import hf_folders


def there_and_back(tmp_path: pathlib.Path, name: str, **options) -> dict[str, np.ndarray]:
  """The tensors of the folder `name` after an import (with these options) and an export."""
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False, **options)
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  return hf_folders.load(tmp_path / "back")


def error(function, *args, **kwargs) -> str:
  """The message of the UserError that the call must raise: one line."""
  with pytest.raises(UserError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)
