"""config.json of a checkpoint folder."""

import sys

import pytest
from etils import epath

from gptneo_jax.checkpoints.folder import load_config, run_folder, save_config
from gptneo_jax.config import PRESETS
from gptneo_jax.errors import UserError


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


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("memory://run", "a local folder or gs://, not memory://"),
    ("s3://bucket/run", "not s3://; a bucket that is mounted is a local folder"),
    ("gs://bucket/run", r"gs:// needs gcsfs: pip install 'gptneo_jax\[gcs\]'"),
    ("FILE", "is a file; a run needs a folder"),
  ],
)
def test_a_folder_that_no_run_can_write_is_refused_by_name(name, said, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=said):
    run_folder(str(tmp_path / "file") if name == "FILE" else name)


def test_the_home_in_the_name_of_a_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert run_folder("~/run") == epath.Path(tmp_path / "run")
  assert run_folder("runs/tiny") == epath.Path("runs/tiny")
