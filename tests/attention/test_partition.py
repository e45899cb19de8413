"""Kernels on a mesh against one device, in a process with 8 CPU devices."""

import pytest

from tests.helpers.processes import found_on_eight_devices


@pytest.fixture(scope="module")
def found():
  """What attention_mesh_checks.py printed."""
  return found_on_eight_devices("attention_mesh_checks.py")


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
