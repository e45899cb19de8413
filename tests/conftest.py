"""Fixtures that every test may use. Nothing here is needed to run the software."""

import os
import pathlib
import shutil
import sys

import jax
import pytest

from tests.helpers import compiling

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


if shutil.which("nvidia-smi") is None:  # the flags hold for GPUs too
  os.environ.setdefault("XLA_FLAGS", compiling.QUICKLY)  # read when JAX first compiles


@pytest.fixture(scope="session", autouse=True)
def exact_float32():
  """Tolerances are of float32, in which accelerators do not multiply unless they are told to."""
  if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def explicit_broadcasting():
  """An array is never broadcast to another rank in silence: that is an error."""
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """Programs that another test has compiled are read back, here and in processes that tests
  start: many compile the same functions."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # of all workers
  settings = {
    "jax_compilation_cache_dir": str(folder / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
  }
  for name, value in settings.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module", autouse=True)
def with_denormals():
  """No test leaves the process such that numbers below 1e-38 become 0 for those after it."""
  yield
  assert sys.float_info.min / 2 > 0, "torch.set_flush_denormal(True) was left on"


@pytest.fixture(scope="module", autouse=True)
def freed():
  """What a module has traced and compiled would be kept: gigabytes at the end."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The development data: GPTNEO_JAX_DATA, or ../shared/data beside the repository."""
  default = REPOSITORY.parent / "shared" / "data"
  folder = pathlib.Path(os.environ.get("GPTNEO_JAX_DATA", default))
  if not folder.is_dir():
    pytest.skip(f"no development data at {folder} (set GPTNEO_JAX_DATA)")
  return folder


def pytest_addoption(parser):
  parser.addoption(
    "--parity-examples",
    type=int,
    default=2,
    help="random models per head that parity tests draw; compiling each takes seconds",
  )
