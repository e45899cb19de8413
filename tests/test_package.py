"""What importing the package costs and checks, and what running it lists."""

import configparser
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

import gptneo_jax
from gptneo_jax import cli


def python(*arguments: str, path: str = "") -> subprocess.CompletedProcess:
  searched = os.pathsep.join(part for part in (path, *sys.path) if part)
  return subprocess.run(
    [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": searched},
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip


def install(folder, package: str, version: str) -> None:
  """As pip would leave it, without its modules."""
  information = folder / f"{package.replace('-', '_')}-{version}.dist-info"
  information.mkdir()
  (information / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
  )


def test_the_versions_checked_are_those_required(repository):
  setup = configparser.ConfigParser()
  setup.read(repository / "setup.cfg")
  required = map(Requirement, setup["options"]["install_requires"].split())
  bounds = {r.name: str(r.specifier).removeprefix(">=") for r in required if r.specifier}
  assert gptneo_jax._NEEDS == bounds


@pytest.mark.processes
def test_packages_that_are_too_old_are_one_line(tmp_path):
  """As on Colab, which has a jax of its own: said on import and by the programs."""
  install(tmp_path, "jax", "0.7.2")
  install(tmp_path, "transformers", "4.57.1")
  line = (
    "gptneo_jax: jax 0.10.2 or later is needed, 0.7.2 is installed; transformers 5 or later is"
    " needed, 4.57.1 is installed: pip install -U 'jax>=0.10.2' 'transformers>=5', then restart the"
    " runtime if this is a notebook"
  )
  imported = python("-c", "import gptneo_jax", path=str(tmp_path))
  assert imported.stderr.splitlines()[-1] == f"ImportError: {line}"
  program = python("-m", "gptneo_jax.train", "--config", "configs/tiny.py", path=str(tmp_path))
  assert program.returncode == 1 and line in program.stderr
  assert len(program.stderr.splitlines()) == 1, program.stderr


@pytest.mark.processes
def test_an_old_package_still_loaded_asks_for_a_restart(tmp_path):
  """pip has replaced jax, and the notebook's process has the old one in memory."""
  (tmp_path / "jax.py").write_text('__version__ = "0.7.2"\n')
  done = python("-c", "import jax, gptneo_jax", path=str(tmp_path))
  assert done.stderr.splitlines()[-1] == (
    "ImportError: gptneo_jax: jax 0.10.2 or later is needed, 0.7.2 is loaded: restart the runtime"
    " if this is a notebook"
  )


@pytest.mark.processes
def test_newer_ones_are_welcome(tmp_path):
  install(tmp_path, "jax", "0.11.0rc1")
  assert python("-c", "import gptneo_jax", path=str(tmp_path)).returncode == 0


@pytest.mark.processes
def test_importing_the_package_is_cheap():
  done = python(
    "-c",
    "import sys, time; start = time.process_time(); import gptneo_jax\n"
    "print(time.process_time() - start, *{'jax', 'numpy', 'flax', 'orbax'} & sys.modules.keys())",
  )
  seconds, *loaded = done.stdout.split()
  assert not loaded
  assert float(seconds) < 0.3


@pytest.mark.processes
@pytest.mark.parametrize("program", ["convert", "generate", "evaluate", "plan", "train"])
def test_a_program_starts_without_what_only_some_of_its_work_needs(program):
  """Each of these packages takes a second or more to import; `--help` must not wait for them."""
  slow = {"torch", "transformers", "datasets", "lm_eval", "matplotlib", "qwix", "pyarrow", "grain"}
  done = python("-c", f"import sys, gptneo_jax.{program}; print(*{slow} & sys.modules.keys())")
  assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.processes
def test_the_package_lists_its_programs(repository):
  listed = python("-m", "gptneo_jax")
  assert listed.returncode == 0, listed.stderr
  programs = {
    file.stem
    for file in (repository / "gptneo_jax").glob("*.py")
    if "__main__" in file.read_text(encoding="utf-8") and file.stem != "__main__"
  }
  assert programs >= {"train", "plan", "convert", "evaluate", "generate"}
  programs.add("serve")  # a room with a __main__.py
  for program in programs:
    assert f"python -m gptneo_jax.{program} " in listed.stdout
  piped = f"set -o pipefail; {sys.executable} -m gptneo_jax | true"
  ended = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=repository)
  assert (ended.returncode, ended.stderr) == (cli.EXIT_CLOSED_PIPE, "")
  mistaken = python("-m", "gptneo_jax", "train", "--config", "configs/tiny.py")
  assert mistaken.returncode == 1
  assert mistaken.stderr == "error: python -m gptneo_jax.train, with a dot\n"
