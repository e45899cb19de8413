"""Brings the names of stored tensors to those of transformers' classes with a head."""

from __future__ import annotations

import collections
import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence

from gptneo_jax.errors import UserError
from gptneo_jax.interop import name_map
from gptneo_jax.interop.tensor import Tensor

# Parts that torch.compile, DataParallel, FSDP and activation checkpointing insert into names.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Where the decoder's names begin.
_DECODER = re.compile(r"(?P<before>.*?)(?:transformer\.)?(?:wte|wpe|ln_f|h\.\d+)\.")
# Masks that older versions of transformers saved with the weights, for any of the layers.
_LEGACY_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)")

_log = logging.getLogger(__name__)


def canonical_names(tensors: Mapping[str, Tensor], ignore: Sequence[str] = ()) -> dict[str, Tensor]:
  """The tensors by the names that a class with a head gives them, without buffers.

  Prefixes and parts that wrappers inserted are removed, with a warning; the names of a decoder that
  was saved without a head get the prefix `transformer.`.

  Args:
    tensors: by the names that they are stored under.
    ignore: patterns of stored names to leave out ('v_head.*').

  Raises:
    UserError: a pattern matches nothing, only some names have a prefix, or two tensors get one
      name.
  """
  for pattern in ignore:
    if not fnmatch.filter(tensors, pattern):
      raise UserError(f"--ignore {pattern!r} matches none of the tensors, such as {min(tensors)}")
  stored = [name for name in tensors if not any(fnmatch.fnmatchcase(name, p) for p in ignore)]
  unwrapped = {
    name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in stored
  }
  prefix = _common_prefix(unwrapped.values(), tensors)
  named: dict[str, Tensor] = {}
  for name in stored:
    plain = unwrapped[name].removeprefix(prefix)
    if re.match(r"(wte|wpe|ln_f|h\.\d+)\.", plain):
      plain = name_map.PREFIX + plain
    if plain in named:
      raise UserError(f"{tensors[name].file} holds {plain} twice, with a prefix and without")
    named[plain] = tensors[name]
  changed = next((name for name in stored if unwrapped[name].removeprefix(prefix) != name), None)
  if changed is not None:
    _log.warning(
      "%s: parts that a wrapper added to the names are removed: %s is read as %s",
      tensors[changed].file, changed, unwrapped[changed].removeprefix(prefix),
    )  # fmt: skip
  return {name: t for name, t in named.items() if not _LEGACY_BUFFER.fullmatch(name)}


def _common_prefix(names, tensors: Mapping[str, Tensor]) -> str:
  """The most frequent prefix of the decoder's names, as 'model.'; of equals the shortest."""
  found = collections.Counter(m["before"] for name in names if (m := _DECODER.match(name)))
  prefix = min(found, key=lambda prefix: (-found[prefix], len(prefix)), default="")
  other = next((name for name in names if not name.startswith(prefix)), None)
  if other is not None:
    file = next(iter(tensors.values())).file
    raise UserError(
      f"{file}: names of the weights begin with {prefix!r}, but {other} does not;"
      f" `convert hf-to-orbax … --ignore {ignore_pattern(other)!r}` leaves it out"
    )
  return prefix


def ignore_pattern(name: str) -> str:
  """A pattern that matches a tensor outside the model and those beside it: 'v_head.*'."""
  first = name.partition(".")[0]
  return name if first in (name, "transformer", "lm_head") else f"{first}.*"
