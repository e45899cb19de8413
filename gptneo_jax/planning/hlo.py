"""Reads the text of a compiled program (XLA's HLO): computations, instructions, shapes, loops.

The compiler's own cost analysis counts the body of a loop once, and the model is a scan over
layers inside a scan over parts of a batch. Here every computation knows how often it runs, so that
hlo_costs.py can count the cost of a step. Reads what `jax.stages.Compiled.as_text()` gives on CPU,
GPU and TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {
  "pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8,
  "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16,
  "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip


class Shape(NamedTuple):
  """An array: element type, dimensions, and the memory it lies in (0: HBM, the large one)."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """Bytes, without the padding of a tiled layout."""
    bits = _BITS.get(self.dtype) or (4 if self.dtype.startswith("f4") else 8)  # f8e4m3fn, …
    if self.dtype in ("token", "opaque"):
      bits = 0
    return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = shapes opcode(operands), attributes`; a tuple's shapes are flattened."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, pattern: str) -> str | None:
    """The first group of `pattern` in the attributes."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else None

  def integers(self, name: str) -> tuple[int, ...]:
    """`name={1,2}` as integers, () if there is none."""
    return _integers(self.attribute(rf"\b{name}=\{{([\d,]*)\}}") or "")

  @property
  def op_name(self) -> str:
    """Where in the traced program it comes from: 'jit(train_step)/…/attn/q/dot_general'."""
    return self.attribute(r'op_name="([^"]*)"') or ""

  @property
  def called(self) -> tuple[str, ...]:
    """Computations run once each time this instruction runs; loops apart, scalar reducers not."""
    if self.opcode in ("fusion", "call", "async-start", "conditional"):
      lists = re.findall(r"\b(?:calls|to_apply|branch_computations)=\{?([^}=]+?)\}?(?:, \w|$)",
                         self.attributes)  # fmt: skip
      both = re.findall(r"\b(?:true|false)_computation=%?([\w.-]+)", self.attributes)
      return tuple(name.strip().lstrip("%") for text in lists for name in text.split(",")) + tuple(
        both
      )
    return ()


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    return {instruction.name: instruction for instruction in self.instructions}

  @functools.cached_property
  def root(self) -> Instruction:
    return next(one for one in reversed(self.instructions) if one.is_root)

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Of each instruction, those that take its result."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions:
      for operand in dict.fromkeys(instruction.operands):
        users.setdefault(operand, []).append(instruction)
    return users

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """In the order in which a caller passes them."""
    found = [one for one in self.instructions if one.opcode == "parameter"]
    return sorted(found, key=lambda one: int(one.operands[0]))

  def operand_shapes(self, instruction: Instruction) -> list[Shape]:
    """Shapes of the operands, tuples flattened."""
    known = (self.by_name.get(name) for name in instruction.operands)
    return [shape for one in known if one for shape in one.shapes]


@dataclasses.dataclass(frozen=True)
class Module:
  entry: str
  computations: dict[str, Computation]

  @functools.cached_property
  def runs(self) -> dict[str, int]:
    """How often each computation runs in one execution; fused ones as often as their fusion."""
    runs: dict[str, int] = {}

    def add(name: str, times: int) -> None:
      runs[name] = runs.get(name, 0) + times
      computation = self.computations[name]
      for instruction in computation.instructions:
        if instruction.opcode == "while":
          trips = self.trip_count(computation, instruction) or 1
          body = instruction.attribute(r"body=%?([\w.-]+)")
          assert body is not None, instruction
          add(body, times * trips)
        for called in instruction.called:
          add(called, times)

    add(self.entry, 1)
    return runs

  def each(self) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that runs, with its computation and how often."""
    for name, times in self.runs.items():
      for instruction in self.computations[name].instructions:
        yield self.computations[name], instruction, times

  @property
  def unknown_loops(self) -> int:
    """Loops whose number of turns the text does not tell; their bodies are counted once."""
    return sum(
      instruction.opcode == "while" and self.trip_count(computation, instruction) is None
      for computation, instruction, _ in self.each()
    )

  def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
    """Turns of a `while`: as the compiler noted it, or of a counter from a constant to another."""
    noted = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if noted:
      return int(noted)
    condition = self.computations[loop.attribute(r"condition=%?([\w.-]+)") or ""]
    compare = condition.root
    if compare.opcode != "compare" or compare.attribute(r"direction=(\w+)") != "LT":
      return None
    counter, bound = (condition.by_name[name] for name in compare.operands)
    end = self._constant(condition, bound)
    index = counter.attribute(r"index=(\d+)")
    if counter.opcode != "get-tuple-element" or index is None or end is None:
      return None
    start_tuple = computation.by_name[loop.operands[0]]
    body = self.computations[loop.attribute(r"body=%?([\w.-]+)") or ""]
    if start_tuple.opcode != "tuple" or body.root.opcode != "tuple":
      return None
    start = self._constant(computation, computation.by_name[start_tuple.operands[int(index)]])
    step = self._step(body, body.by_name[body.root.operands[int(index)]], int(index))
    if start is None or step is None:
      return None
    return max(0, math.ceil((end - start) / step))

  def _constant(self, computation: Computation, instruction: Instruction) -> int | None:
    while instruction.opcode in ("copy", "convert", "bitcast"):
      instruction = computation.by_name[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
      return None
    return int(instruction.operands[0])

  def _step(self, body: Computation, following: Instruction, index: int) -> int | None:
    """What a turn adds to element `index` of the carried tuple, None if it does something else."""
    while following.opcode in ("copy", "bitcast"):
      following = body.by_name[following.operands[0]]
    if following.opcode != "add":
      return None
    steps = []
    for name in following.operands:
      term = body.by_name[name]
      while term.opcode in ("copy", "bitcast"):
        term = body.by_name[term.operands[0]]
      if term.opcode == "get-tuple-element" and term.attribute(r"index=(\d+)") == str(index):
        continue
      steps.append(self._constant(body, term))
    return steps[0] if len(steps) == 1 and steps[0] and steps[0] > 0 else None


def parse(text: str) -> Module:
  """The module that `Compiled.as_text()` prints. Raises ValueError if it is none."""
  computations, entry = {}, None
  name, lines = None, []
  for line in text.splitlines():
    if name is None:
      header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
      if header:
        name, lines = header[2], []
        entry = name if header[1] else entry
    elif line == "}":
      computations[name] = Computation(name, tuple(map(_instruction, lines)))
      name = None
    elif line.startswith("  "):
      lines.append(line)
    else:  # the metadata of a kernel may have line breaks
      lines[-1] += line
  if entry is None:
    raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
  return Module(entry, computations)


def _instruction(line: str) -> Instruction:
  head, _, rest = line.strip().partition(" = ")
  is_root, name = head.startswith("ROOT "), head.removeprefix("ROOT ").lstrip("%")
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shapes, rest = rest[:end], rest[end:].lstrip()
  opening = rest.index("(")
  closing = _closing(rest, opening)
  opcode, inside = rest[:opening], rest[opening + 1 : closing]
  operands = (inside,) if opcode in ("constant", "parameter") else tuple(_names(inside))
  return Instruction(
    name, tuple(_shapes(shapes)), opcode, operands, rest[closing + 1 :].lstrip(", "), is_root
  )


def _closing(text: str, opening: int) -> int:
  """Index of the parenthesis that closes the one at `opening`."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, opening):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return found.start()
  raise ValueError(f"unbalanced parentheses: {text[:120]}")


def _names(inside: str) -> list[str]:
  """Operand names; older printers put the operand's shape before its name."""
  return re.findall(r"%([\w.-]+)", inside)


def _shapes(text: str) -> Iterator[Shape]:
  for found in re.finditer(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
    dims = tuple(int(size.lstrip("<=")) for size in found[2].split(",") if size)
    space = re.search(r"S\((\d+)\)", found[3] or "")
    yield Shape(found[1], dims, int(space[1]) if space else 0)


def _integers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",") if number)
