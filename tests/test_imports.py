"""What importing the package needs, and what it leaves alone; each looked at in a new process."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import gptneo_jax

PACKAGE = pathlib.Path(gptneo_jax.__file__).parent


def run(check: str, given: object = None) -> dict:
  """The findings of a function of tests/helpers/import_checks.py."""
  script = pathlib.Path(__file__).with_name("helpers") / "import_checks.py"
  done = subprocess.run(
    [sys.executable, str(script), check], input=json.dumps(given), capture_output=True, text=True,
    timeout=500,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


@pytest.mark.processes
def test_everything_imports_and_trains_without_kernels():
  """With jax's private cuDNN module and Pallas for TPU hidden; `auto` says what it misses."""
  found = run("without_kernels")
  assert len(found["imported"]) >= len(list(PACKAGE.rglob("*.py"))) - 5  # folders of data
  assert found["hidden"] and found["finite"]
  assert found["chosen"] == {"tpu": "blocked", "gpu": "blocked"}
  missing = {
    "splash": "it needs jax.experimental.pallas.ops.tpu.splash_attention, which cannot be imported"
    " here: No module named 'jax.experimental.pallas.ops'",
    "cudnn": "it needs jax._src.cudnn.fused_attention_stablehlo, which cannot be imported here: No"
    " module named 'jax._src.cudnn'",
  }
  for kernel, reason in missing.items():
    assert f"blocked; {kernel}: {reason}\n" in found["stderr"]
    assert found["refused"][kernel] == f"attention backend {kernel!r} cannot serve here: {reason}"


@pytest.mark.processes
def test_importing_touches_nothing_global():
  """No logger's filters or handlers, hook, generator, setting of jax, variable, signal, warning."""
  third_party = run("third_party")["modules"]
  assert {"jax", "orbax.checkpoint", "absl.logging", "numpy.random"} <= set(third_party)
  found = run("changed_by_importing", third_party)
  assert found["changed"] == {}
  assert found["modules_of_others_before"] == found["modules_of_others_after"]


def test_private_modules_are_imported_where_they_are_used():
  """Never when a module of ours is imported: jax may move them with any version."""
  found = {
    f"{file.relative_to(PACKAGE)}: {name}"
    for file in PACKAGE.rglob("*.py")
    for name in imported_at_once(ast.parse(file.read_text(encoding="utf-8")).body)
    if name.startswith(("jax._src", "jaxlib", "jax.experimental.pallas"))
  }
  assert not found


def imported_at_once(body: list[ast.stmt]) -> list[str]:
  """Names that a module imports when it is imported: not in functions, not for types alone."""
  names = []
  for statement in body:
    if isinstance(statement, ast.Import):
      names += [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
      names += [f"{statement.module}.{alias.name}" for alias in statement.names]
    elif isinstance(statement, (ast.If, ast.Try, ast.With, ast.ClassDef)):
      if ast.unparse(getattr(statement, "test", statement)) != "TYPE_CHECKING":
        for part in ("body", "orelse", "handlers", "finalbody"):
          names += imported_at_once(getattr(statement, part, []))
    elif isinstance(statement, ast.ExceptHandler):
      names += imported_at_once(statement.body)
  return names
