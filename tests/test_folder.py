"""config.json of a checkpoint folder."""

import pytest

from gptneo_jax.config import PRESETS
from gptneo_jax.errors import UserError
from gptneo_jax.folder import load_config, save_config


def test_there_and_back(tmp_path):
  save_config(tmp_path / "run", PRESETS["gpt2_small"])
  assert load_config(tmp_path / "run") == PRESETS["gpt2_small"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "holds no config.json"),
    ("{", "cannot be read"),
    ('{"model_type": "gpt_neo"}', "was not written by gptneo_jax"),
    ('{"format": "gptneo_jax", "hiden_size": 8}', "did you mean 'hidden_size'"),
  ],
)
def test_what_it_refuses(content, message, tmp_path):
  if content is not None:
    (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=message):
    load_config(tmp_path)
