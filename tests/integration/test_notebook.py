"""The notebook for Colab is its script, and runs: small, without a network, in a folder of its own.

What it makes is in `came_of_it.json`, and the pictures are among the outputs of its cells.
"""

import base64
import importlib.util
import io
import json
import math
import os
import sys

import jupytext
import matplotlib.image
import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def notebook(repository) -> nbformat.NotebookNode:
  return nbformat.read(repository / "notebooks" / "colab.ipynb", as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, repository, tmp_path_factory) -> tuple[nbformat.NotebookNode, dict]:
  """A copy with its outputs, and what came of it. A cell that fails is an error that shows it."""
  folder = tmp_path_factory.mktemp("notebook")
  copy = nbformat.from_dict(notebook)
  settings = {
    "GPTNEO_NOTEBOOK_SMALL": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(repository), *filter(None, sys.path)]),
  }
  client = nbclient.NotebookClient(
    copy, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
  )
  client.execute(env=os.environ | settings)
  return copy, json.loads((folder / "gptneo_work" / "came_of_it.json").read_text("utf-8"))


def test_it_is_what_jupytext_makes_of_the_script(notebook, repository):
  script = jupytext.read(repository / "notebooks" / "colab.py")
  parts = lambda of: [(cell.cell_type, cell.source) for cell in of.cells]
  again = "jupytext --to ipynb --update notebooks/colab.py"
  assert parts(notebook) == parts(script), again
  assert notebook.metadata.kernelspec == script.metadata.kernelspec, again


def test_it_is_stored_without_outputs(notebook):
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert not any(cell.outputs or cell.execution_count for cell in code)


def test_every_cell_runs_and_something_comes_of_it(executed):
  copy, came_of_it = executed
  assert all(cell.execution_count for cell in copy.cells if cell.cell_type == "code")
  first, last = came_of_it["training loss"]
  assert last < first - 0.5
  perplexities = came_of_it["validation perplexity"]
  assert len(perplexities) > 1 and perplexities[-1] < 512  # that of a model that knows nothing
  assert came_of_it["perplexity"] == pytest.approx(perplexities[-1], rel=1e-3)  # the same documents
  assert math.isfinite(came_of_it["bits per byte"])
  assert came_of_it["tasks"].keys() == {"stdlib_text", "stdlib_cloze"}
  right, taught = came_of_it["answers word for word"].split(" of ")
  assert right == taught
  if importlib.util.find_spec("torch"):
    assert came_of_it["largest difference from PyTorch"] < 1e-4


def test_its_pictures_show_something(executed):
  copy, _ = executed
  outputs = [out for cell in copy.cells for out in cell.get("outputs", ())]
  drawn = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
  assert len(drawn) == 6
  for picture in drawn:
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.05
