"""Fixtures that every test may use. Nothing here is needed to run the software."""

import os
import pathlib

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


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


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Programs that a module compiles again are read back: its runs compile the same functions."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0)):
    jax.config.update(name, value)
  yield
  for name, value in zip(names, before):
    jax.config.update(name, value)


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
