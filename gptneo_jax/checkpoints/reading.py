"""Reads checkpoints; refuses those that are damaged or of another model, in one line."""

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from gptneo_jax.checkpoints import adapters, manifest
from gptneo_jax.checkpoints.quiet import free_abandoned, quiet_abandoned, quiet_orbax
from gptneo_jax.checkpoints.step_folders import CheckpointError, absolute, existing_step
from gptneo_jax.config import VOCABULARY_TABLES
from gptneo_jax.errors import first_line
from gptneo_jax.model import lora
from gptneo_jax.model.lora import LoraConfig

# What is wrong with a file, where other errors are the machine's or the network's. None: of errors
# that are raised without the system's number.
_OF_THE_FILE = {
  None, errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip


class DamagedError(Exception):
  """A committed checkpoint with missing or changed files; the message is the reason."""


def require_undamaged(folder: str, step: int) -> None:
  """Raises CheckpointError if the files of a checkpoint's parameters are not as written."""
  try:
    check_files(absolute(folder) / str(step), ("params",))
  except DamagedError as error:
    raise CheckpointError(f"checkpoint {step} in {folder} is damaged: {error}") from error


def params_metadata(folder: str, step: int | None = None) -> Any:
  """The saved parameters as nested dictionaries of ShapeDtypeStruct; their values are not read.

  Raises CheckpointError if the step (default: the newest) does not exist or cannot be read.
  """
  step = existing_step(folder, step)
  try:
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
      _saved_tree(absolute(folder) / str(step) / "params"),
    )
  except DamagedError as error:
    raise CheckpointError(f"checkpoint {step} in {folder} is damaged: {error}") from error


def restore_params(
  folder: str, abstract_params: Any, step: int | None = None, *, vocab_size: int | None = None
) -> Any:
  """The parameters of one checkpoint, for inference; changes nothing in the folder.

  Args:
    folder: holds the numbered checkpoints; of those of LoRA the merged model is read.
    abstract_params: tree of ShapeDtypeStruct with the shardings and types of the result.
    step: default the newest.
    vocab_size: number of rows of `wte` and `lm_head` without padding; the number of padding rows
      may differ from what was saved. None: it may not.

  Raises:
    CheckpointError: no such checkpoint, one of another model, or damage.
  """
  step = existing_step(folder, step)
  if (settings := adapters.settings_of(folder)) is not None:
    base = restore_params(
      str(absolute(folder) / adapters.BASE), abstract_params, 0, vocab_size=vocab_size
    )
    return _merged(base, _restore(folder, params_metadata(folder, step), step, None), settings)
  return _restore(folder, abstract_params, step, vocab_size)


def _restore(folder: str, abstract_params: Any, step: int, vocab_size: int | None) -> Any:
  path = absolute(folder) / str(step)
  require_undamaged(folder, step)
  try:
    require_same_model(path, "params", abstract_params, vocab_size, same_dtype=False)
    return read(path, params=restore_args(abstract_params))["params"]
  except DamagedError as error:
    raise CheckpointError(f"checkpoint {step} in {folder} is damaged: {error}") from error


def check_files(
  path: epath.Path,
  items: Sequence[str] = manifest.ITEMS,
  share: tuple[int, int] = (0, 1),
) -> None:
  """As `manifest.check`. Raises DamagedError, CheckpointError."""
  try:
    manifest.check(path, items, share=share)
  except ValueError as error:
    raise DamagedError(str(error)) from None
  except OSError as error:
    raise _damage(error) from error


def _merged(base: Any, learned: Any, settings: LoraConfig) -> Any:
  """The base with factors added, where the base is. They are small, and come as every device can
  have them."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
  adapter = adapters.adapter_of(jax.tree.map(np.asarray, learned), settings)
  add = jax.jit(lora.merged, out_shardings=shardings, donate_argnums=0)
  return add(base, adapter)


def restore_args(abstract: Any) -> ocp.args.StandardRestore:
  """Arguments for orbax to restore `abstract`; leaves without a sharding go to the first device.

  Without a sharding orbax would use the stored one, which names the devices of the machine that
  wrote it. Not strict: arrays of another shape than the stored one are cut or filled with zeros;
  `require_same_model` allows that for the padding of vocabulary tables only.
  """
  default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return ocp.args.StandardRestore(
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or default), abstract
    ),
    strict=False,
  )


@contextlib.contextmanager
def _reading():
  """Words the error of a failed read, silences orbax, and frees the arrays read so far.

  These arrays must not be in memory while the next older checkpoint is read.
  """
  with quiet_orbax(), quiet_abandoned():
    try:
      yield
    except Exception as error:
      free_abandoned(error)
      raise _damage(error) from error


def _saved_tree(path: epath.Path) -> Any:
  """orbax's array metadata of one item as a tree (custom nodes as dictionaries)."""
  with _reading():
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def read(path: epath.Path, **items) -> ocp.args.Composite:
  """Reads items of one checkpoint; each process reads its own shards.

  The processes do not wait for each other here: if one found damage, the others would hang in
  orbax's barrier. `Checkpointer.restore` lets them agree afterwards.
  """
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f"process_{jax.process_index()}",
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
  )
  with _reading(), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
    return reader.restore(path, args=ocp.args.Composite(**items))


def require_same_model(
  path: epath.Path, item: str, abstract: Any, vocab_size: int | None, *, same_dtype: bool
) -> None:
  """Raises CheckpointError naming the first tensor that is missing, extra or of another shape.

  Vocabulary tables may have another number of rows after the first `vocab_size`.
  """
  saved, expected = _by_name(_saved_tree(path / item)), _by_name(abstract)
  for name in [*expected, *(name for name in saved if name not in expected)]:
    there = saved.get(name)
    if vocab_size is not None and name in expected and there is not None:
      there = _padded_alike(name, there, expected[name].shape, vocab_size)
    ours, theirs = (_describe(array, same_dtype) for array in (expected.get(name), there))
    if ours != theirs:
      raise CheckpointError(
        f"checkpoint {path.name} in {path.parent} is of another model: "
        f"{item}/{name} is {theirs} there, {ours} here"
      )


def _padded_alike(name: str, saved: Any, shape: tuple[int, ...], vocab_size: int) -> Any:
  """`saved`, with `shape` if only the padding rows of a vocabulary table differ."""
  if not set(VOCABULARY_TABLES) & set(name.split("/")) or len(saved.shape) != len(shape):
    return saved
  same = [n == m or min(n, m) >= vocab_size for n, m in zip(saved.shape, shape)]
  return jax.ShapeDtypeStruct(shape, saved.dtype) if all(same) else saved


def _by_name(tree: Any) -> dict[str, Any]:
  """The arrays by path; the same paths for a tree and for its saved form."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): leaf
    for path, leaf in leaves
    if hasattr(leaf, "shape")  # orbax marks empty nodes
  }


def _describe(array: Any, with_dtype: bool) -> str:
  if array is None:
    return "absent"
  return f"{tuple(array.shape)} {np.dtype(array.dtype)}" if with_dtype else f"{tuple(array.shape)}"


def _damage(error: Exception) -> Exception:
  """DamagedError for a damaged checkpoint; CheckpointError if the machine failed to read it.

  The latter must not lead to a checkpoint being moved aside.
  """
  elsewhere = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED"
  of_machine = isinstance(error, MemoryError) or (
    isinstance(error, OSError) and error.errno not in _OF_THE_FILE
  )
  if of_machine or re.search(elsewhere, str(error)):
    return CheckpointError(f"could not read the checkpoint: {reason_of(error)}")
  return DamagedError(reason_of(error))


def reason_of(error: BaseException) -> str:
  """The cause of an error in a few words: the system's own if it has one."""
  if isinstance(error, OSError) and error.strerror:
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
  if code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's form
    return os.strerror(int(code.group(1)))
  return first_line(error)[:300]
