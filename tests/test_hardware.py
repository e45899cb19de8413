"""The table of accelerators is consistent, and found by what JAX reports."""

import pytest

from gptneo_jax import hardware


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU v4", "v4"),
    ("Tesla T4", "t4"),
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA L40S", None),
    ("cpu", None),
  ],
)
def test_found_by_kind(kind, name):
  found = hardware.find_chip(kind)
  assert (found and found.name) == name


def test_every_chip_has_a_peak():
  for chip in hardware.CHIPS.values():
    assert chip.peak_flops(2) >= chip.peak_flops(4) > 1e12
    assert chip.hbm_gbytes > 100 and 10 < chip.memory_gib < 200


def test_shapes_are_in_order():
  for chip in hardware.CHIPS.values():
    sizes = [hardware.num_chips(shape) for shape in chip.shapes]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
  ("name", "shape", "links"),
  [
    ("v5e", "1x1", 0),
    ("v5e", "2x4", 2),  # a corner: one link along each side
    ("v5e", "8x16", 3),  # the side of 16 is a ring
    ("v5e", "16x16", 4),
    ("v5p", "2x2x1", 2),
    ("v5p", "4x4x4", 6),
    ("v5p", "2x4x4", 5),
  ],
)
def test_links(name, shape, links):
  chip = hardware.CHIPS[name]
  assert chip.links_bytes_per_second(shape) == links * chip.link_gbytes * 1e9
