"""Kernels on a mesh against one device, in a process with 8 CPU devices."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import HELPERS

SCRIPT = HELPERS / "attention_mesh_checks.py"


@pytest.fixture(scope="module")
def found():
  """What attention_mesh_checks.py printed."""
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_values_and_gradients_equal_one_device(found):
  assert len(found["cases"]) == 4
  for name, case in found["cases"].items():
    assert max(case["errors"]) < 1e-5, name


def test_each_device_works_on_its_part_alone(found):
  cases = found["cases"]
  assert cases["data=8"]["held"] == [[1, 24, 2, 8]] * 4
  assert cases["2 x 2 x 2"]["held"] == [[2, 24, 1, 8]] * 4
  for name in ("data=8", "2 x 2 x 2", "2 x 2 x 2, no segments"):
    assert cases[name]["collectives"] == 0, name
  assert found["cudnn"] == ["2", "3", "640", "640"]  # 8 rows over 4, 6 heads over 2
