"""LoRA: low-rank changes of some kernels, applied beside the weights or merged into them.

An adapter is a tree of the parameters' layout. Where they have `kernel` (N, …in, …out; N is the
number of repeats of the scan over layers), it has for some of them

  lora_a (N, …in, r) · lora_b (N, r, …out) · lora_scale (N)

and the kernel changes by lora_scale · a·b. It may hold `head`, a head that was trained in full.
`combine` puts the factors beside the kernels, where the decoder applies them (`Dense` in
model/decoder.py); `merge` adds them to the kernels. Source: Hu et al. 2021, arXiv:2106.09685;
PEFT's files are read and written by interop/peft_files.py.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import did_you_mean

TARGETS = ("q", "k", "v", "out", "c_fc", "c_proj")
BASES = ("", "int8", "int4")

_FACTORS = ("lora_a", "lora_b", "lora_scale")
_FUSED = ("q", "k", "v")  # one matrix of GPT-2 in PyTorch


def input_axes(name: str) -> int:
  """How many axes of the kernel of the dense layer `name` are its inputs, after that of layers."""
  return 2 if name == "out" else 1


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which factors learn, and how. Raises ValueError on a value out of range.

  Attributes:
    rank: inner dimension of a pair of factors.
    alpha: their product is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank).
    dropout: of what `lora_a` reads.
    targets: dense layers of the blocks, with commas, or 'all'.
    base: what the frozen kernels are quantized to, one of BASES; '': they stay as they are.
  """

  rank: int
  alpha: float = 16.0
  dropout: float = 0.0
  targets: str = "all"
  rslora: bool = False
  base: str = ""

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"lora.rank is {self.rank}; it must be at least 1")
    if not self.alpha > 0:
      raise ValueError(f"lora.alpha is {self.alpha}; it must be above 0")
    if self.base not in BASES:
      raise ValueError(
        f"lora.base is {self.base!r}; it must be one of {', '.join(map(repr, BASES))}"
      )
    for name in self.names:
      if name not in TARGETS:
        raise ValueError(
          f"lora.targets has {name!r}{did_you_mean(name, TARGETS)}; there is 'all', and"
          f" {', '.join(TARGETS)}"
        )

  @property
  def names(self) -> tuple[str, ...]:
    """The dense layers that get factors."""
    if self.targets == "all":
      return TARGETS
    return tuple(dict.fromkeys(name.strip() for name in self.targets.split(",")))

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def describe(self) -> str:
    """ "LoRA of rank 8 on q, v, scale = alpha / r = 2"."""
    formula = "alpha / sqrt(r)" if self.rslora else "alpha / r"
    base = f" on an {self.base} base" if self.base else ""
    return (
      f"LoRA of rank {self.rank} on {', '.join(self.names)}{base}, scale = {formula} ="
      f" {self.scale:.4g}"
    )


# --- new factors ----------------------------------------------------------------------------------


def draw(
  lora: LoraConfig, config: ModelConfig, blocks: dict[str, Any], key: jax.Array
) -> dict[str, Any]:
  """New factors for a model's blocks, float32, without scales: a random, b zero, as PEFT's.

  GPT-2's q, k and v are one matrix in PyTorch, which PEFT gives one pair of factors: here their
  `lora_a` is one too, beside them (blocks/layer_J/attn/lora_a).
  """

  def visit(path: str, node: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    name = path.rpartition("/")[2]
    if "kernel" in node:
      if name not in lora.names:
        return made
      shape, inputs = node["kernel"].shape, 1 + input_axes(name)
      made["lora_b"] = jnp.zeros((shape[0], lora.rank, *shape[inputs:]), jnp.float32)
      if config.model_type != "gpt2" or name not in _FUSED:
        made["lora_a"] = _uniform(path, shape[:inputs], lora.rank, key)
      return made
    for child, below in node.items():
      if isinstance(below, dict) and (inner := visit(f"{path}/{child}", below)):
        made[child] = inner
    if name == "attn" and config.model_type == "gpt2" and any(one in made for one in _FUSED):
      made["lora_a"] = _uniform(path, node["q"]["kernel"].shape[:2], lora.rank, key)
    return made

  return visit("blocks", blocks)


def _uniform(path: str, shape: tuple[int, ...], rank: int, key: jax.Array) -> jax.Array:
  """PEFT's first A: uniform within 1 / sqrt(inputs). Of its own key, whatever else has factors."""
  bound = math.prod(shape[1:]) ** -0.5
  key = jax.random.fold_in(key, zlib.crc32(path.encode()))
  return jax.random.uniform(key, (*shape, rank), jnp.float32, -bound, bound)


def scales(factors: dict[str, Any], scale: float) -> dict[str, Any]:
  """A tree with the `lora_scale` of each pair of factors."""
  made = {}
  for name, node in factors.items():
    if not isinstance(node, dict):
      continue
    if "lora_b" in node:
      made[name] = {"lora_scale": jnp.full(node["lora_b"].shape[0], scale, jnp.float32)}
    elif inner := scales(node, scale):
      made[name] = inner
  return made


# --- together with a model ------------------------------------------------------------------------


def combine(params: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
  """The union of two trees, leaves of the second in the place of the first's.

  A `lora_a` that several dense layers share is given to each: that is how the decoder reads it.
  """
  both = dict(params)
  for name, node in adapter.items():
    below = both.get(name)
    nested = isinstance(node, dict) and isinstance(below, dict)
    both[name] = combine(below, node) if nested else _with_own_a(node)
  return _with_own_a(both)


def _with_own_a(node: Any) -> Any:
  if not isinstance(node, dict):
    return node
  if "lora_a" not in node or "lora_b" in node:
    return {key: _with_own_a(below) for key, below in node.items()}
  shared = node["lora_a"]
  give = lambda below: {"lora_a": shared, **below} if "lora_b" in below else below
  return {key: give(below) for key, below in node.items() if key != "lora_a"}


def merge(params: dict[str, Any]) -> dict[str, Any]:
  """The plain model of a tree with factors beside its kernels; also under jit.

  Kernels that are quantized are dequantized.
  """
  if "kernel" in params:
    rest = {key: leaf for key, leaf in params.items() if key not in _FACTORS}
    kernel = params["kernel"]
    if hasattr(kernel, "qvalue"):
      from gptneo_jax.model import quantized_kernel

      kernel = quantized_kernel.dequantize(kernel)
    if "lora_a" in params:
      kernel = _add(kernel, *(params[name] for name in _FACTORS))
    return {**rest, "kernel": kernel}
  return {key: merge(node) if isinstance(node, dict) else node for key, node in params.items()}


def merged(params: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
  """The parameters with an adapter added to them, in their types."""
  both = merge(combine(params, adapter))
  return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), both, params)


def merge_slice(
  adapter: dict[str, Any], path: str, index: int | None, array: np.ndarray
) -> np.ndarray:
  """One slice of one parameter with the adapter added to it: `merged` without the model in memory.

  Args:
    path: of the parameter, 'blocks/layer_0/attn/q/kernel'.
    index: of the slice along the leading axis, the layers'; None for a parameter without it.
    array: the slice.
  """
  parent, _, name = path.rpartition("/")
  node = at(adapter, parent)
  if name in node:
    return np.asarray(node[name], array.dtype)
  if name != "kernel" or "lora_a" not in node:
    return array
  assert index is not None  # factors are of the layers' kernels
  parts = (node[name][index : index + 1] for name in _FACTORS)
  return np.asarray(_add(array[None], *parts))[0]


def at(tree: dict[str, Any], path: str) -> dict[str, Any]:
  """The node at a path ('blocks/layer_0/attn/q'), {} if there is none."""
  node: Any = tree
  for key in path.split("/") if path else ():
    node = node.get(key, {})
  return node


def _add(kernel, a, b, scale):
  """kernel + scale · a·b of every layer, computed in float32."""
  N, r = a.shape[0], a.shape[-1]
  change = jnp.einsum(
    "N,Nir,Nro->Nio",
    jnp.asarray(scale, jnp.float32),
    jnp.asarray(a, jnp.float32).reshape(N, -1, r),
    jnp.asarray(b, jnp.float32).reshape(N, r, -1),
    precision=jax.lax.Precision.HIGHEST,
  )
  return (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)
