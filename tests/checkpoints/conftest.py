"""A folder of checkpoints, made once."""

import pytest

from gptneo_jax.checkpoints import manager
from tests.helpers.checkpoint_runs import save


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
  """A folder with checkpoints 1 and 2; copy it before doing damage."""
  folder = tmp_path_factory.mktemp("checkpoints")
  checkpointer = manager.Checkpointer(folder)
  assert all(save(checkpointer, step, {"eval/loss": float(step)}) for step in (1, 2))
  checkpointer.close()
  return folder
