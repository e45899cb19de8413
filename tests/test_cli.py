"""What every program gets: mistakes as one line, and compiled programs kept."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from gptneo_jax import cli
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
def main():
  jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
  print("hits", sum(hits))
cli.guarded(main)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
  variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  variables |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  return subprocess.run(
    [sys.executable, "-c", program],
    env=variables | environment, capture_output=True, text=True, timeout=120,
  )  # fmt: skip


@pytest.mark.processes
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
  first, second = (run(PROGRAM, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
  assert first.stdout == "hits 0\n", first.stderr
  assert int(second.stdout.split()[1]) > 0, second.stderr
  assert any((tmp_path / "gptneo_jax").iterdir())


@pytest.mark.processes
def test_no_cache_where_the_variable_is_empty(tmp_path):
  done = run(PROGRAM, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
  assert done.stdout == "hits 0\n", done.stderr
  assert not any(tmp_path.iterdir())


@pytest.mark.processes
def test_a_mistake_is_one_line():
  done = run(
    "from gptneo_jax import cli, errors\n"
    "def main(): raise errors.UserError('no such thing')\n"
    "cli.guarded(main)"
  )
  assert (done.returncode, done.stderr) == (1, "error: no such thing\n")
