"""Packed rows of every task: parts of a batch, one without anything that counts, and devices."""

import pytest

from tests.helpers import processes


@pytest.mark.processes
def test_parts_and_devices_are_the_large_batch():
  # Without fusion emitters weights are rounded to 8 bits otherwise on another mesh.
  emitters = "--xla_cpu_use_fusion_emitters=true"
  found = processes.found_on_eight_devices("packed_devices.py", emitters)
  assert {"sequence_classification", "instruction", "question_answering"} <= found.keys()
  for task, one in found.items():
    assert one["loss"] > 0.01 and one["difference"] < 2e-6, (task, one)
