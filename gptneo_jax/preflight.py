"""What a run will need, worked out before anything large is made."""

from __future__ import annotations

import math
import os
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gptneo_jax.config import ModelConfig
from gptneo_jax.sharding import bytes_per_device
from gptneo_jax.state import TrainState

GIB = 2**30


def step_bytes(
  config: ModelConfig, state: TrainState, mesh: Mesh, *, rows: int, seq_len: int, accumulates: bool
) -> dict[str, int]:
  """Bytes per device of a training step, by part; activations and logits are estimates.

  state: abstract, with shardings. rows: sequences of one part of the batch, over all devices.
  Gradients are as large as the parameters, twice when they are accumulated; activations are what
  the backward pass keeps under `config.remat`; logits are float32, with their gradient.
  """
  B = math.ceil(rows / (mesh.shape["data"] * mesh.shape["fsdp"]))
  tokens, tensor = B * seq_len, mesh.shape["tensor"]
  D, F, L = config.hidden_size, config.mlp_size, config.num_layers
  width = jnp.dtype(config.dtype).itemsize
  matrices = (5 * D + 2 * F) // tensor * width  # q, k, v, the heads' output, c_fc before and after
  norms = 2 * D * (width + 4)
  scores = sum(
    (seq_len if kind == "global" else min(seq_len, 2 * config.window_size))
    * (config.num_heads // tensor)
    * (4 + width)
    for kind in config.attention_layers
  )
  blocks = L * (D * width + matrices + norms) + scores
  one_block = matrices + norms + scores // L
  kept = {"none": blocks, "dots": L * (D * width + matrices), "full": L * D * width}[config.remat]
  if config.remat != "none":
    kept += one_block
  return {
    "parameters": bytes_per_device(state.params),
    "gradients": bytes_per_device(state.params) * (2 if accumulates else 1),
    "optimizer": bytes_per_device(state.opt_state),
    "activations": tokens * kept,
    "logits": tokens * config.padded_vocab_size // tensor * 4 * 3,
  }


def available_bytes(devices: list[jax.Device]) -> int:
  """Memory of one of `devices`; of CPU devices, its part of what the machine has left."""
  stats = devices[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return min([pages, *_linux_limits()]) // len(devices)


def _linux_limits() -> list[int]:
  """Free memory and the container's limit, in bytes, where Linux says."""
  limits = []
  meminfo = pathlib.Path("/proc/meminfo")
  if meminfo.exists():
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
  cgroup = pathlib.Path("/sys/fs/cgroup/memory.max")
  if cgroup.exists() and (limit := cgroup.read_text().strip()).isdigit():
    limits.append(int(limit))
  return limits


def memory_problem(needs: dict[str, int], available: int, num_devices: int) -> str | None:
  """What is wrong, with the figures, if `needs` is more than `available`; bytes per device."""
  total = sum(needs.values())
  if total <= available:
    return None
  parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needs.items())
  return (
    f"memory: a step needs about {total / GIB:.1f} GiB on each of {num_devices} device(s)"
    f" ({parts}), and there are {available / GIB:.1f} GiB"
  )
