"""What of a model learns, and what does not: a parameter tree is split into both.

The full method trains all parameters but those that a pattern names. LoRA trains factors beside the
kernels of the blocks (model/lora.py), and a head. `lora.combine` of the two parts is the model that
losses and evaluations see.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gptneo_jax.config import ModelConfig
from gptneo_jax.model import lora
from gptneo_jax.model.lora import LoraConfig


@dataclasses.dataclass(frozen=True)
class Method:
  """How a model is trained. Raises ValueError for a pattern that is none.

  Attributes:
    lora: None for the full method.
    frozen: regular expression: what would learn and has a path that it matches somewhere, such as
      'blocks/layer_0/attn/q/kernel', does not; '': nothing.
  """

  lora: LoraConfig | None = None
  frozen: str = ""

  def __post_init__(self):
    try:
      re.compile(self.frozen)
    except re.error as error:
      raise ValueError(f"frozen is {self.frozen!r}: no regular expression: {error}") from None


FULL = Method()


class Parts(NamedTuple):
  """Two trees of the parameters' layout, of which each leaf is in one."""

  learned: dict[str, Any]
  frozen: dict[str, Any]

  def combined(self) -> dict[str, Any]:
    return lora.combine(self.frozen, self.learned)


def split(method: Method, config: ModelConfig, params: dict[str, Any], key: jax.Array) -> Parts:
  """Splits a model's parameters; the key is of new factors. A pure function of arrays.

  What learns beside low-rank factors, and these themselves, are float32 whatever the type of the
  weights. Raises ValueError for a pattern that matches nothing that would learn, or all of it.
  """
  learned, frozen = params, {}
  if method.lora is not None:
    factors = {"blocks": lora.draw(method.lora, config, params["blocks"], key)}
    in_full = {"head": params["head"]} if "head" in params else {}
    learned = jax.tree.map(lambda x: x.astype(jnp.float32), in_full) | factors
    rest = {name: node for name, node in params.items() if name not in in_full}
    if method.lora.base:
      rest["blocks"] = _quantized(rest["blocks"], method.lora.base)
    frozen = lora.combine(rest, lora.scales(factors, method.lora.scale))
  if not method.frozen:
    return Parts(learned, frozen)
  keep, out = _divide(learned, lambda path: re.search(method.frozen, path) is None)
  if not out or not keep:
    matched = "everything that learns" if out else "nothing that learns"
    raise ValueError(
      f"frozen={method.frozen!r} matches {matched}; what learns is {', '.join(paths(learned))}"
    )
  return Parts(keep, _union(frozen, out))


def abstract_split(
  method: Method, config: ModelConfig, abstract: dict[str, Any], mesh: Mesh | AbstractMesh
) -> Parts:
  """`split` of ShapeDtypeStructs with shardings: factors are laid out as their kernels are."""
  shapes = jax.eval_shape(lambda x: split(method, config, x, jax.random.key(0)), abstract)
  plain = paths(abstract)

  def spec(names: tuple[str, ...], leaf: Any) -> PartitionSpec:
    there = plain.get("/".join(names))
    if there is not None and there.shape == leaf.shape:
      return there.sharding.spec
    parent, name = "/".join(names[:-1]), names[-1]
    if name == "lora_a" and f"{parent}/kernel" not in plain:  # shared by q, k and v
      parent = f"{parent}/q"
    inputs = 1 + lora.input_axes(parent.rpartition("/")[2])
    kernel = plain.get(parent if names[-2] == "kernel" else f"{parent}/kernel")
    axes = (*kernel.sharding.spec, *[None] * kernel.ndim)[: kernel.ndim] if kernel else ()
    if name == "lora_a":
      return PartitionSpec(*axes[:inputs], None)
    if name == "lora_b":
      return PartitionSpec(axes[0], None, *axes[inputs:])
    if kernel is not None and leaf.ndim == kernel.ndim:  # of a quantized kernel
      parts = lambda axis: mesh.shape[axis] if axis else 1
      return PartitionSpec(*(a if n % parts(a) == 0 else None for a, n in zip(axes, leaf.shape)))
    return PartitionSpec()

  def annotate(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec(names, leaf))
    )

  return Parts(*(jax.tree_util.tree_map_with_path(annotate, part) for part in shapes))


def paths(tree: dict[str, Any]) -> dict[str, Any]:
  """The leaves by their paths, 'blocks/layer_0/attn/q/kernel'."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _quantized(blocks: dict[str, Any], mode: str) -> dict[str, Any]:
  from gptneo_jax.model import quantized_kernel  # qwix takes a second to import

  def visit(name: str, node: dict[str, Any]) -> dict[str, Any]:
    if "kernel" in node:
      kernel = quantized_kernel.quantize(node["kernel"], mode, lora.input_axes(name))
      return {**node, "kernel": kernel}
    return {k: visit(k, below) if isinstance(below, dict) else below for k, below in node.items()}

  return visit("blocks", blocks)


def _divide(tree: dict[str, Any], keeps: Callable[[str], bool], parent: str = "") -> tuple:
  """The leaves whose paths are to be kept, and the others, as two trees without empty nodes."""
  kept, others = {}, {}
  for name, node in tree.items():
    path = f"{parent}{name}"
    if isinstance(node, dict):
      for part, below in zip((kept, others), _divide(node, keeps, f"{path}/")):
        if below:
          part[name] = below
    else:
      (kept if keeps(path) else others)[name] = node
  return kept, others


def _union(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  both = dict(one)
  for name, node in other.items():
    both[name] = _union(both.get(name, {}), node) if isinstance(node, dict) else node
  return both
