"""What the machine could compute, and the memory that was used."""

import functools
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import hardware


def peak_flops_per_second(device: jax.Device, dtype: Any) -> tuple[float, str]:
  """Returns the matmul FLOP/s one device could reach, and 'datasheet' or 'measured'.

  A device the table does not know, such as any CPU, is measured once per process by a short
  matmul in `dtype` (float32 on CPU, where the 16-bit types are emulated).
  """
  known = hardware.peak_flops(device.device_kind, jnp.dtype(dtype).itemsize)
  if known is None:
    return _measured_flops_per_second(
      device, jnp.dtype(jnp.float32 if device.platform == "cpu" else dtype)
    ), "measured"
  return known, "datasheet"


@functools.cache
def _measured_flops_per_second(device: jax.Device, dtype: np.dtype) -> float:
  size = 1024 if device.platform == "cpu" else 4096
  x = jax.device_put(np.ones((size, size), dtype), device)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()  # compiles
  best, end = math.inf, time.perf_counter() + 0.2
  while (start := time.perf_counter()) < end:
    multiply(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def memory_in_use_bytes(devices: Sequence[jax.Device]) -> int:
  """Returns the largest peak of memory on any of `devices`; without such a count, as on CPU, the
  peak of this process."""
  stats = [device.memory_stats() or {} for device in devices]
  if stats and all("peak_bytes_in_use" in each for each in stats):
    return max(each["peak_bytes_in_use"] for each in stats)
  try:
    import resource
  except ImportError:  # not on Windows
    return 0
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
