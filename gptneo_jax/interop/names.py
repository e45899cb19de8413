"""Stored tensors' names, brought to those that transformers' classes with a head have."""

from __future__ import annotations

import collections
import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence

from gptneo_jax.errors import UserError
from gptneo_jax.interop import name_map
from gptneo_jax.interop.tensor import Tensor

# What torch.compile, DataParallel, FSDP and activation checkpointing put into names, at any place.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Where the decoder's names begin.
_DECODER = re.compile(r"(?P<before>.*?)(?:transformer\.)?(?:wte|wpe|ln_f|h\.\d+)\.")
# Masks that older versions saved beside the weights, on any of the layers.
_LEGACY_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)")

_log = logging.getLogger(__name__)


def plain_names(tensors: Mapping[str, Tensor], ignore: Sequence[str] = ()) -> dict[str, Tensor]:
  """The tensors by the names that classes with a head have, without buffers that are no weights.

  What a wrapper put in front is taken off, and said; a decoder saved alone gets its prefix.

  Args:
    tensors: as they are stored.
    ignore: patterns of stored names ('v_head.*') that are left out.

  Raises:
    UserError: a pattern that matches nothing, a prefix that only some names have, or two tensors of
      one name.
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
      "%s: names are read without what a wrapper added to them: %s is %s", tensors[changed].file,
      changed, unwrapped[changed].removeprefix(prefix),
    )  # fmt: skip
  return {name: t for name, t in named.items() if not _LEGACY_BUFFER.fullmatch(name)}


def _common_prefix(names, tensors: Mapping[str, Tensor]) -> str:
  """What stands before most of the decoder's own names: 'model.', say; of equals the shortest."""
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
  """A pattern for a tensor that is no part of the model, and for its neighbours: 'v_head.*'."""
  first = name.partition(".")[0]
  return name if first in (name, "transformer", "lm_head") else f"{first}.*"
