"""The figures of the machine."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

from gptneo_jax.training import machine_figures


@pytest.mark.parametrize(
  ("kind", "half", "single"),
  [
    ("TPU v3", 61.5, 61.5),
    ("TPU v5 lite", 197, 197),
    ("TPU v5", 459, 459),
    ("TPU v6 lite", 918, 918),
    ("TPU7x", 1153.5, 1153.5),
    ("Tesla T4", 65, 8.1),
    ("Tesla V100-SXM2-16GB", 125, 15.7),
    ("Tesla V100-PCIE-32GB", 112, 14),
    ("NVIDIA A10", 125, 62.5),
    ("NVIDIA A10G", 70, 35),
    ("NVIDIA A100-SXM4-80GB", 312, 156),
    ("NVIDIA A100 80GB PCIe", 312, 156),
    ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
    ("NVIDIA H100 PCIe", 756, 378),
    ("NVIDIA H200", 989.4, 494.7),
    ("NVIDIA L4", 121, 60),
    ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
  ],
)
def test_peak_flops_by_device_kind(kind, half, single):
  device = types.SimpleNamespace(device_kind=kind, platform="gpu")
  for dtype, expected in ((jnp.bfloat16, half), (jnp.float16, half), (jnp.float32, single)):
    flops, source = machine_figures.peak_flops_per_second(device, dtype)
    assert (flops, source) == (pytest.approx(expected * 1e12), "datasheet")


def test_peak_flops_of_a_cpu_are_measured():
  device = jax.devices("cpu")[0]
  flops, source = machine_figures.peak_flops_per_second(device, jnp.bfloat16)
  assert source == "measured" and 1e8 < flops < 1e14
  assert machine_figures.peak_flops_per_second(device, jnp.float32) == (flops, source)  # once


def test_memory_in_use(monkeypatch):
  with_stats = [
    types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 7)
  ]
  assert machine_figures.memory_in_use_bytes(with_stats) == 7
  assert 2**24 < machine_figures.memory_in_use_bytes(jax.devices("cpu")) < 2**40
  monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
  assert machine_figures.memory_in_use_bytes(jax.devices("cpu")) == 0
