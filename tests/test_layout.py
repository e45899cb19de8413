"""The layout in docs/design.md: rooms, imports only downward, a test file for each module."""

import ast
import configparser
import graphlib
import pathlib
import re

import pytest

ROOMS = {
  "attention", "checkpoints", "data", "evals", "examples", "generation", "interop", "model",
  "planning", "serve", "training",
}  # fmt: skip


@pytest.fixture(scope="module")
def modules(repository) -> dict[str, pathlib.Path]:
  """The package's modules by their dotted names, without the recipes of configs/."""
  package = repository / "gptneo_jax"
  files = (file for file in package.rglob("*.py") if "configs" not in file.parts)
  return {
    ".".join(file.relative_to(repository).with_suffix("").parts).removesuffix(".__init__"): file
    for file in files
  }


def imports(name: str, file: pathlib.Path, modules) -> set[str]:
  """The package's modules that a file imports, at its top or later."""
  found = set()
  for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{file}: relative import"
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found.add(whole if whole in modules else node.module)
  return {one for one in found if one in modules and one != name}


@pytest.fixture(scope="module")
def graph(modules) -> dict[str, set[str]]:
  return {name: imports(name, file, modules) for name, file in modules.items()}


def rows(repository) -> list[list[str]]:
  """import-linter's table, top to bottom."""
  setup = configparser.ConfigParser()
  setup.read(repository / "setup.cfg")
  table = setup["importlinter:contract:floors"]["layers"].strip().splitlines()
  return [re.split(r"\s*[|:]\s*", row.strip()) for row in table]


def unit(module: str) -> str:
  """The room or the single module at the top that a module belongs to."""
  return module.split(".")[1] if "." in module else ""


def test_few_modules_stand_at_the_top(repository):
  package = repository / "gptneo_jax"
  assert len(list(package.glob("*.py"))) < 20
  folders = {path.parent.name for path in package.glob("*/__init__.py")}
  assert folders == ROOMS | {"configs"}


def test_the_table_is_short_and_names_everything(repository, modules):
  table = rows(repository)
  assert len(table) <= 12
  named = [one for row in table for one in row]
  assert len(named) == len(set(named))
  assert set(named) == {unit(name) for name in modules} - {""} | {"configs"}


def test_imports_run_downward_only(repository, graph):
  """What import-linter checks too; here the graph is walked, so that neither can be misread."""
  floor = {name: height for height, row in enumerate(reversed(rows(repository))) for name in row}
  upward = [
    (name, other)
    for name, others in graph.items()
    for other in others
    if unit(name) and unit(other) and unit(name) != unit(other)
    if floor[unit(other)] > floor[unit(name)]
  ]
  assert upward == []


def test_no_module_imports_itself_by_way_of_others(graph):
  """A package's __init__ is its room's face and imports from the room: not a step of a way back."""
  faces = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
  order = graphlib.TopologicalSorter({name: others - faces for name, others in graph.items()})
  order.prepare()  # raises CycleError, which names the modules


def covered(repository) -> dict[str, str]:
  """Of tests/README.md: module, and the test file that covers it."""
  text = (repository / "tests/README.md").read_text(encoding="utf-8")
  return dict(re.findall(r"^\| `([\w/]+)` \| `([\w/.]+)` \|$", text, re.MULTILINE))


def test_each_module_has_a_test_file_or_a_row_that_names_one(repository, modules):
  listed, missing = covered(repository), []
  for name, file in modules.items():
    if file.name == "__init__.py":
      continue
    path = pathlib.Path(*name.split(".")[1:])
    own = repository / "tests" / path.parent / f"test_{path.name}.py"
    if own.is_file():
      assert path.as_posix() not in listed, f"{path} has a file of its own: take its row away"
    elif path.as_posix() not in listed:
      missing.append(path.as_posix())
  assert missing == []
  paths = {name.removeprefix("gptneo_jax.").replace(".", "/") for name in modules}
  for module, test in listed.items():
    assert module in paths, f"tests/README.md lists {module}, which there is not"
    assert (repository / test).is_file(), f"tests/README.md names {test}, which there is not"


def test_the_folders_of_tests_are_the_rooms(repository):
  folders = {file.parent.name for file in (repository / "tests").glob("*/test_*.py")}
  assert folders == ROOMS | {"parity", "integration"}


def test_no_test_imports_from_a_test(repository):
  for file in (repository / "tests").rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
      assert not [n for n in names if n.split(".")[-1].startswith("test_") and n != "test"], file
