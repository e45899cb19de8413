"""Memory estimate of a training step, and of other uses of a model; what memory there is."""

from __future__ import annotations

import functools
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from gptneo_jax import attention, hardware
from gptneo_jax.config import ModelConfig
from gptneo_jax.hardware import current_hardware
from gptneo_jax.model import methods
from gptneo_jax.model.chunked_cross_entropy import GPU_CHUNK
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import FULL, Method
from gptneo_jax.sharding import abstract_mesh, batch_ways, bytes_per_device
from gptneo_jax.state import TrainState, abstract_state
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer

GIB, MIB = 2**30, 2**20

# The estimate as a share of the compiler's count, lowest and highest, for the compiled cells of
# experiments/plan_table.json; a test holds it to that.
NEARNESS = (0.93, 1.10)
# What TPU's compiler takes for activations beyond those that must be there: it keeps more where
# that lets more run at once. Fitted to the same cells.
_SCHEDULED = {"none": 1.10, "dots": 1.03, "full": 1.05}


def step_bytes(
  config: ModelConfig,
  state: TrainState,
  mesh: Mesh | AbstractMesh,
  *,
  rows: int,
  seq_len: int,
  accumulates: bool,
) -> dict[str, int]:
  """Bytes per device of a training step, by part; activations and logits are estimates.

  state: abstract, with shardings. rows: sequences of one part of the batch, over all devices.
  Gradients are as large as what learns; when they are accumulated, their float32 sum comes on top.
  Cast weights are the copy in the type of the computation; of a quantized base, those of one layer.
  Activations are what the backward pass keeps under `config.remat`, and those of one block; with
  dropout before low-rank factors also what it leaves for each. Logits are those of a chunk of
  tokens (GPU_CHUNK, the largest), their exponentials and gradients, and with fsdp the gathered
  embedding table.
  """
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
  tokens = math.ceil(rows / batch_ways(mesh)) * seq_len
  D, F, L = config.hidden_size, config.mlp_size, config.num_layers
  width = jnp.dtype(config.dtype).itemsize
  F_part, D_part = F // tensor, D // tensor  # of the MLP, and of q, k, v and the heads' output
  products = width * (4 * D_part + D + F_part)  # results of weights, and of attention
  # All that differentiation keeps: two values of the MLP's width, before gelu and after it, and
  # three float32 values of each norm. While a block is computed again, fusions spare some of it.
  everything = width * (4 * D_part + 2 * D + 2 * F_part) + 2 * 3 * 4 * D
  one_block = width * (4 * D_part + 2 * D + 4 * F_part) + 3 * 4 * D
  if config.lora_dropout:  # q, k, v, c_fc and out each read D numbers, c_proj F, with their masks
    dropped = (width + 1) * (4 * D + D_part + F_part)
    everything, one_block = everything + dropped, one_block + dropped
  if config.attention_impl == "reference":  # the others never hold all scores
    scores = seq_len * (config.num_heads // tensor) * (4 + width)
    everything, one_block = everything + scores, one_block + scores
  kept = {
    "none": L * everything,
    "dots": L * (width * D + products) + one_block,
    "full": L * width * D + one_block,
  }[config.remat]

  learned = bytes_per_device(state.params)
  table_learns = "wte" in state.params or "lm_head" in state.params
  V = config.padded_vocab_size // tensor if config.has_lm_head else 0
  # With fsdp each device gathers all of the table, and makes all of its gradient before scattering.
  full_table = V * D * (4 * table_learns + width) if fsdp > 1 else 0
  return {
    "parameters": learned + bytes_per_device(state.frozen),
    "gradients": learned,
    "gradient sums": _in_type(state.params, 4) if accumulates else 0,
    "optimizer": bytes_per_device(state.opt_state),
    "cast weights": _cast_bytes(config, state),
    "activations": int(tokens * kept * _SCHEDULED[config.remat]),
    "logits": min(tokens, GPU_CHUNK) * V * (4 + 4 + width) + full_table,
  }


def _in_type(tree: Any, width: int) -> int:
  """Bytes per device of a tree, were its numbers of `width` bytes."""
  as_bytes = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding)
  return width * bytes_per_device(jax.tree.map(as_bytes, tree))


def _cast_bytes(config: ModelConfig, state: TrainState) -> int:
  """Bytes per device of the weights that are stored in another type than they are computed in."""
  width, total = jnp.dtype(config.dtype).itemsize, 0
  for path, leaf in methods.paths(state.model_params).items():
    if path.endswith("qvalue"):  # dequantized layer by layer, in float32 first
      per_byte = 2 if leaf.dtype == jnp.uint8 else 1  # numbers
      total += _in_type(leaf, (4 + width) * per_byte) // config.num_layers
    elif "/kernel/" not in path and leaf.dtype.itemsize != width:
      total += _in_type(leaf, width)
  return total


class Use(NamedTuple):
  """Something to do with a model, and the bytes that it needs of one device."""

  name: str
  terms: str
  bytes: int


def use_bytes(config: ModelConfig, seq_len: int, *, half: str | None) -> list[Use]:
  """What each use of a model needs on one device, by estimate.

  half: the 16-bit type that the device trains in, None if it has none, as a T4: activations of
  training are float32 then, while weights that do not learn stay in 16 bits. Adapters are of rank 8
  beside all linear layers, trained by AdamW.
  """
  D, F, V = config.hidden_size, config.mlp_size, config.padded_vocab_size
  weights = 2 * config.num_params()
  row = seq_len * 2 * (6 * D + 2 * F)  # what one layer holds of it, in 16 bits
  logits = min(8 * seq_len, GPU_CHUNK) * V * (4 + 4)
  keys = sum(
    seq_len if kind == "global" else min(seq_len, config.window_size)
    for kind in config.attention_layers
  )
  trained = config.replace(remat="full", dtype=half or "float32")
  halved = trained.replace(param_dtype="bfloat16", lora_dropout=0.05)

  def step(optimizer: str, config: ModelConfig = trained, method: Method = FULL) -> int:
    rule, _ = make_optimizer(OptimizerConfig(name=optimizer), ScheduleConfig(decay_steps=10_000))
    mesh = abstract_mesh(1, 1, 1, num_devices=1)
    state = abstract_state(Decoder(config), rule, mesh, method)
    return sum(step_bytes(config, state, mesh, rows=1, seq_len=seq_len, accumulates=False).values())

  adapters = functools.partial(LoraConfig, rank=8, dropout=0.05)
  return [
    Use("evaluate", "16-bit weights, 8 rows", weights + 8 * row + logits),
    Use("generate", "16-bit weights, 1 row, all positions", weights + keys * 2 * D * 2 + row),
    Use("fine-tune", "AdamW, float32 weights, 1 row at a time", step("adamw")),
    Use("fine-tune", "Adafactor, float32 weights, 1 row at a time", step("adafactor")),
    *(
      Use("fine-tune", terms, step("adamw", halved, Method(adapters(base=base))))
      for base, terms in (
        ("", "LoRA on 16-bit weights, 1 row at a time"),
        ("int8", "QLoRA on an 8-bit base, 1 row at a time"),
        ("int4", "QLoRA on a 4-bit base, 1 row at a time"),
      )
    ),
  ]


def convert_bytes(config: ModelConfig) -> int:
  """Memory of the host while weights are converted, which goes tensor by tensor: the program, and
  the largest tensor twice. experiments/convert_2p7b.py measures 0.55 GB at 125M, 1.05 at 1.3B."""
  return 300_000_000 + 2 * 4 * config.padded_vocab_size * config.hidden_size


def attention_backends(config: ModelConfig, seq_len: int, *, segments: bool) -> dict[str, str]:
  """The backend that trains each kind of layer here, {'global': …, 'local': …}.

  Raises ValueError, which says why, if the one that the config asks for cannot.
  """
  return {
    kind: attention.resolve(
      config.attention_impl,
      attention.AttentionRequest(
        length=seq_len,
        window=config.window_size if kind == "local" else None,
        head_dim=config.head_dim,
        dtype=config.dtype,
        segments=segments,
        dropout=config.attention_dropout > 0,
        hardware=current_hardware(),
      ),
    )
    for kind in dict.fromkeys(config.attention_pattern)
  }


def memory_bytes(devices: list[jax.Device]) -> int:
  """Memory of one of this host's `devices` that a run can count on: the same at every start.

  Of CPU devices, their part of half the machine's memory: the rest is other programs', and what is
  free changes from moment to moment.
  """
  return _of_accelerator(devices[0]) or min(_machine_limits()) // 2 // len(devices)


def available_bytes(devices: list[jax.Device]) -> int:
  """Memory of one of `devices`; of CPU devices, its part of what the machine has left, swap too."""
  if memory := _of_accelerator(devices[0]):
    return memory
  limits = _machine_limits()
  meminfo = pathlib.Path("/proc/meminfo")
  if meminfo.exists():
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    left = sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    limits.append(left * 1024)
  return min(limits) // len(devices)


def _of_accelerator(device: jax.Device) -> int | None:
  """What a program can have of its memory; None of a CPU, which has none of its own."""
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  chip = None if device.platform == "cpu" else hardware.find_chip(device.device_kind)
  return int(chip.memory_gib * GIB) if chip else None


def _machine_limits() -> list[int]:
  """The machine's memory, and the container's limit where Linux says, in bytes."""
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  cgroup = pathlib.Path("/sys/fs/cgroup/memory.max")
  if cgroup.exists() and (limit := cgroup.read_text(encoding="utf-8").strip()).isdigit():
    limits.append(int(limit))
  return limits


# --- in words -------------------------------------------------------------------------------------


def size_text(size: float) -> str:
  """ "3.25 GiB", and below a tenth of that "33.3 MiB"."""
  return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def total(needs: dict[str, int]) -> int:
  return sum(needs.values())


def certain_bytes(needs: dict[str, int]) -> int:
  """What a step needs however it is compiled: all that is there together when it ends."""
  return needs["parameters"] + needs["gradients"] + needs["optimizer"]


def needs_text(needs: dict[str, int], available: float, num_devices: int) -> str:
  """What a step needs by estimate, by part, and what there is."""
  parts = ", ".join(f"{name} {size_text(size)}" for name, size in needs.items() if size)
  return (
    f"a step needs about {size_text(total(needs))} on each of {num_devices} device(s)"
    f" ({parts}), and there are {size_text(available)}"
  )
