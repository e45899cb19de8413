"""How PyTorch runs beside us in these tests."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def pytorch_on_small_models():
  """One thread, and no denormals, which transformers meets on the trained checkpoint: 40x slower.

  Both hold for all that the process computes, so denormals come back after each file.
  """
  torch = pytest.importorskip("torch")
  torch.set_num_threads(1)
  torch.set_flush_denormal(True)
  yield
  torch.set_flush_denormal(False)
