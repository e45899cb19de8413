"""What a compiled program costs one device: products, memory traffic, collectives, kernels.

Counted from the optimised HLO, with every loop's body taken as often as it runs (planning/hlo.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gptneo_jax.planning.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip

_HBM = 0

# Instructions that move nothing: names for what is there, and loops, whose bodies are counted.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
  "after-all", "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "domain",
  "add-dependency", "async-start", "async-update", "async-done",
}  # fmt: skip
_FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}


class Collective(NamedTuple):
  """Collectives of one kind: how many run, and the bytes that a device sends for them."""

  count: int
  sent_bytes: int


class Kernel(NamedTuple):
  """A hand-written kernel (a custom call): where it comes from, how often it runs, on what.

  flops: of one run, as its author estimates them; None if nothing is said.
  """

  op_name: str
  count: int
  operands: tuple[Shape, ...]
  results: tuple[Shape, ...]
  flops: float | None


# --- products -------------------------------------------------------------------------------------


def flops(module: Module) -> float:
  """Floating-point operations of all matrix products (dot and convolution), two for each
  multiplication; those inside hand-written kernels are not seen here (`kernels`)."""
  return float(sum(times * _flops(where, one) for where, one, times in module.each()))


def _flops(computation: Computation, instruction: Instruction) -> int:
  if instruction.opcode == "dot":
    lhs = computation.operand_shapes(instruction)[0]
    inner = math.prod(lhs.dims[axis] for axis in instruction.integers("lhs_contracting_dims"))
    return 2 * math.prod(instruction.shapes[0].dims) * inner
  if instruction.opcode == "convolution":
    return _convolution_flops(computation, instruction)
  return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
  """TPUs run matrix products as convolutions: heads become a window, dilated so that each head
  meets only itself. What falls between the holes or on the padding is no operation."""
  lhs, rhs = computation.operand_shapes(instruction)[:2]
  labels = instruction.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)") or ""
  lhs_labels, rhs_labels, out_labels = re.split(r"_|->", labels)
  window = _window(instruction)
  sizes = dict(zip(out_labels, instruction.shapes[0].dims))
  pairs = 1
  for digit in (label for label in out_labels if label.isdigit()):
    pairs *= _meetings(
      lhs.dims[lhs_labels.index(digit)],
      rhs.dims[rhs_labels.index(digit)],
      sizes[digit],
      {name: values[int(digit)] for name, values in window.items() if values},
    )
  inner = rhs.dims[rhs_labels.index("i")]  # already divided by the number of feature groups
  groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
  return 2 * pairs * sizes["b"] * sizes["f"] * inner // groups


def _window(instruction: Instruction) -> dict[str, list]:
  text = instruction.attribute(r"window=\{([^}]*)\}") or ""
  fields = dict(field.split("=") for field in text.split())
  window: dict[str, list] = {
    name: [int(size) for size in fields[name].split("x")] if name in fields else []
    for name in ("stride", "lhs_dilate", "rhs_dilate")
  }
  pads = fields.get("pad")
  window["pad"] = [int(pad.split("_")[0]) for pad in pads.split("x")] if pads else []
  return window


def _meetings(base: int, kernel: int, out: int, window: dict[str, int]) -> int:
  """Pairs (output position, kernel position) of one dimension that meet an element of the base."""
  at = (
    np.arange(out)[:, None] * window.get("stride", 1)
    + np.arange(kernel)[None, :] * window.get("rhs_dilate", 1)
    - window.get("pad", 0)
  )
  dilation = window.get("lhs_dilate", 1)
  inside = (at >= 0) & (at <= (base - 1) * dilation) & (at % dilation == 0)
  return int(inside.sum())


# --- traffic --------------------------------------------------------------------------------------


def hbm_bytes(module: Module) -> float:
  """Bytes moved to and from the large memory: each instruction reads its operands and writes its
  results once, slices only what they take. A lower bound: tiles that are read twice count once.
  """
  inside = _fused(module)
  return float(
    sum(
      times * _traffic(module, where, one)
      for where, one, times in module.each()
      if where.name not in inside
    )
  )


def _fused(module: Module) -> set[str]:
  """Computations whose intermediate results never reach memory: those of fusions."""
  return {
    name
    for computation in module.computations.values()
    for one in computation.instructions
    if one.opcode == "fusion"
    for name in one.called
  }


def _traffic(module: Module, computation: Computation, one: Instruction) -> int:
  if one.opcode in _FREE or one.opcode.endswith("-done"):
    return 0
  if one.opcode == "custom-call" and _target(one) in _FREE_CALLS:
    return 0
  operands = computation.operand_shapes(one)
  if one.opcode in ("copy-start", "slice-start"):  # (destination, source, …), (sources, slice, …)
    moved = one.shapes[0] if one.opcode == "copy-start" else one.shapes[len(operands)]
    return moved.size * ((operands[0].space == _HBM) + (moved.space == _HBM))
  if one.opcode.endswith("-start"):  # its tuple holds the operands too
    return _in_hbm(operands) + _in_hbm(one.shapes[len(operands) : 2 * len(operands)])
  if one.opcode in ("dynamic-slice", "slice", "gather"):
    return _in_hbm(one.shapes) + one.shapes[0].size * (operands[0].space == _HBM)
  if one.opcode == "dynamic-update-slice":
    return 2 * operands[1].size * (operands[0].space == _HBM)
  if one.opcode == "fusion":
    return _fusion_traffic(module.computations[one.called[0]], computation, one)
  return _in_hbm(operands) + _in_hbm(one.shapes)


def _in_hbm(shapes: Iterable[Shape]) -> int:
  return sum(shape.size for shape in shapes if shape.space == _HBM)


def _fusion_traffic(fused: Computation, computation: Computation, one: Instruction) -> int:
  read = 0
  for parameter, name in zip(fused.parameters, one.operands):
    given = computation.by_name[name].shapes
    taken = _taken(fused, parameter)
    read += _in_hbm(given) if taken is None else taken * (given[0].space == _HBM)
  roots = [fused.root]
  if fused.root.opcode == "tuple":
    roots = [fused.by_name[name] for name in fused.root.operands]
  if len(roots) != len(one.shapes):  # nested tuples
    return read + _in_hbm(one.shapes)
  written = 0
  for root, shape in zip(roots, one.shapes):
    while root.opcode == "bitcast":
      root = fused.by_name[root.operands[0]]
    if root.opcode == "dynamic-update-slice":  # in place
      shape = fused.operand_shapes(root)[1]._replace(space=shape.space)
    written += _in_hbm([shape])
  return read + written


def _taken(fused: Computation, parameter: Instruction) -> int | None:
  """Bytes that a fusion reads of a parameter it only slices or updates in place; None: all."""
  taken = 0
  for user in fused.users.get(parameter.name, []):
    first = user.operands[0] == parameter.name
    if first and user.opcode in ("dynamic-slice", "slice", "gather"):
      taken += user.shapes[0].size
    elif first and user.opcode == "bitcast":
      taken_after = _taken(fused, user)
      if taken_after is None:
        return None
      taken += taken_after
    elif not (first and user.opcode == "dynamic-update-slice"):
      return None
  return taken


# --- collectives ----------------------------------------------------------------------------------


def collectives(module: Module) -> dict[str, Collective]:
  """By kind, the number that run and the bytes one device sends, as on a ring.

  Of D bytes over n devices an all-gather or all-reduce-scatter sends D·(n-1)/n, an all-reduce twice
  that, a permutation D. A TPU may run one collective in pieces, spread over the fusions that it
  hides behind: these share a channel and count once.
  """
  found: dict[str, Collective] = {}
  seen = set()
  for computation, one, times in module.each():
    kind = one.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
      continue
    if chain := one.attribute(r'chain_id="?(\d+)'):
      piece = (kind, one.attribute(r"channel_id=(\d+)"), chain)
      if piece in seen:
        continue
      seen.add(piece)
    n = _group_size(one)
    if n < 2:
      continue
    size = sum(shape.size for shape in computation.operand_shapes(one))
    if kind == "all-gather":
      size *= n
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "collective-broadcast": 1.0}
    sent = round(size * share.get(kind, (n - 1) / n))
    before = found.get(kind, Collective(0, 0))
    found[kind] = Collective(before.count + times, before.sent_bytes + times * sent)
  return found


def _group_size(one: Instruction) -> int:
  """Devices that take part together, in any of the forms in which HLO writes the groups."""
  if pairs := one.attribute(r"source_target_pairs=\{(.*?\})\}"):
    return 2 if any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs + "}")) else 1
  if groups := one.attribute(r"replica_groups=\{(\{[^}]*\})"):
    return len(re.findall(r"\d+", groups))
  if iota := one.attribute(r"replica_groups=\[([\d,]+)\]<="):
    return int(iota.split(",")[-1])
  mesh = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", one.attributes
  )
  if mesh:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
  return 1


# --- kernels --------------------------------------------------------------------------------------


def kernels(module: Module, target: str = "tpu_custom_call") -> list[Kernel]:
  """The custom calls to `target`: Pallas kernels on a TPU."""
  return [
    Kernel(
      op_name=one.op_name,
      count=times,
      operands=tuple(where.operand_shapes(one)),
      results=one.shapes,
      flops=_stated_flops(one),
    )
    for where, one, times in module.each()
    if one.opcode == "custom-call" and _target(one) == target
  ]


def _target(one: Instruction) -> str | None:
  return one.attribute(r'custom_call_target="([^"]*)"')


def _stated_flops(one: Instruction) -> float | None:
  stated = one.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
  return float(stated) if stated else None
