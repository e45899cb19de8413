"""Checkpoints: numbered folders, each whole or not there at all.

checkpoint_steps.py says which there are; these two and checkpoint_pieces.py know orbax.

`FOLDER/STEP/` holds `params`, `optimizer` (any tree of arrays) and `data` (a JSON dictionary),
and is renamed into place only when all of it is written: a process killed half-way leaves a
temporary folder that the next `Checkpointer` removes.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gptneo_jax.checkpoint_steps import (
  BEST_METRIC,
  CheckpointError,
  absolute,
  existing_step,
  latest_step,
  metrics_of,
  saved_steps,
)

_TABLES = {"wte", "lm_head"}  # whose rows are the vocabulary's, with padding after them

_log = logging.getLogger(__name__)


class _DamagedError(Exception):
  """A committed checkpoint with missing or truncated files; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held: trees of jax.Array, the state of the data stream, and its metrics."""

  step: int
  params: Any
  optimizer: Any
  data_state: dict[str, Any]
  metrics: dict[str, float]


class _QuietOrbax(logging.Filter):
  """Drops what orbax itself logs through absl: a dozen lines a save, and every error twice.

  Errors are not lost: orbax raises each of them too, and here they become CheckpointError.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


logging.getLogger("absl").addFilter(_QuietOrbax())


def params_metadata(folder: str, step: int | None = None) -> Any:
  """Returns the saved parameters as nested dictionaries of ShapeDtypeStruct, reading none of them.

  Raises CheckpointError where the step (default: the newest) is not there or not readable.
  """
  step = existing_step(folder, step)
  try:
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
      _saved_tree(absolute(folder) / str(step) / "params"),
    )
  except _DamagedError as error:
    raise CheckpointError(f"checkpoint {step} in {folder} is damaged: {error}") from error


def restore_params(
  folder: str, abstract_params: Any, step: int | None = None, *, vocab_size: int | None = None
) -> Any:
  """Returns the parameters of one checkpoint, for inference; changes nothing in the folder.

  Args:
    folder: holds the numbered checkpoints.
    abstract_params: tree of ShapeDtypeStruct; sharding and dtype are those of the result.
    step: default the newest.
    vocab_size: the rows of `wte` and `lm_head` that mean something; of those past them, which pad
      the tables, there may be more or fewer than were saved. None: as many as were saved.

  Raises:
    CheckpointError: no such checkpoint, another model in it, or damaged.
  """
  step = existing_step(folder, step)
  path = absolute(folder) / str(step)
  try:
    _require_same_model(path, "params", abstract_params, vocab_size, same_dtype=False)
    return _read(path, params=_restore_args(abstract_params))["params"]
  except _DamagedError as error:
    raise CheckpointError(f"checkpoint {step} in {folder} is damaged: {error}") from error


class Checkpointer:
  """Writes and reads the checkpoints of one run.

  All processes of a run create and call it alike. The newest `keep_latest` checkpoints stay, and
  of those with the metric `eval/loss` the best `keep_best`; the others are removed once a
  newer one is whole.
  """

  def __init__(
    self, folder: str, *, keep_latest: int = 3, keep_best: int = 1, asynchronous: bool = True
  ):
    if keep_latest < 1 or keep_best < 0:
      raise ValueError(f"keep_latest is {keep_latest}, keep_best {keep_best}; at least 1 and 0")
    self._folder = absolute(folder)
    self._saving: int | None = None
    self._losses: dict[int, float] = {}  # eval/loss by step, where this process measured it
    self._keep, self._asynchronous = (keep_latest, keep_best), asynchronous
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[BEST_METRIC],  # without it orbax stores no metrics
        best_mode="min",
        preservation_policy=_LatestAndBest(self._folder, self._losses, *self._keep),
        # Nor read the metrics of all steps now: orbax gives up on one damaged metrics file.
        lightweight_initialize=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=self._asynchronous,
      ),
    )

  def save(
    self,
    step: int,
    *,
    params: Any,
    optimizer: Any,
    data_state: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Starts writing a checkpoint, and returns when the arrays may be donated.

    First waits for the save before this one, if that is still being written. On accelerators the
    arrays have been copied to the host on return; on CPU orbax holds views, for as long as which
    XLA leaves the memory alone and a donating step takes fresh memory instead.

    Args:
      step: names the folder.
      params, optimizer: trees of arrays (random keys as their data: `jax.random.key_data`).
      data_state: a JSON dictionary.
      metrics: ranks the checkpoint if it has a finite `eval/loss`.

    Returns:
      False if this step stands already, which leaves it as it is.

    Raises:
      CheckpointError: this save, or the one before it, failed.
    """
    self.wait()
    if step in self._manager.all_steps():
      return False
    self._saving = step
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          optimizer=ocp.args.StandardSave(optimizer),
          data=ocp.args.JsonSave(dict(data_state)),
        ),
        metrics={key: float(value) for key, value in metrics.items()} if metrics else None,
        force=True,
      )
    except Exception as error:
      raise self._failed(error) from error
    return True

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Puts with a checkpoint what was measured after it was saved; `eval/loss` ranks it.

    Returns when both are on disk. Raises CheckpointError like `wait`.
    """
    self.wait()
    self._losses[step] = float(metrics.get(BEST_METRIC, math.inf))
    path = self._folder / str(step)
    if jax.process_index() == 0 and path.exists():
      file = path / "metrics" / "metrics"
      file.parent.mkdir(exist_ok=True)
      written = file.with_name("metrics.part")  # renamed: a process killed here leaves the old one
      written.write_text(json.dumps(metrics_of(path) | {k: float(v) for k, v in metrics.items()}))
      written.replace(file)

  def wait(self) -> None:
    """Returns when the checkpoint being written is whole. Raises CheckpointError if it failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error
    self._saving = None

  def close(self) -> None:
    """Waits, then ends the background threads. Raises CheckpointError like `wait`."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def restore(
    self, abstract_params: Any, abstract_optimizer: Any, *, vocab_size: int | None = None
  ) -> Restored | None:
    """Returns the newest whole checkpoint, None if the folder has none.

    A damaged one (files missing or cut off) is renamed to `STEP.damaged`, with a warning, and
    the next older one is tried.

    Args:
      abstract_params, abstract_optimizer: trees of ShapeDtypeStruct with the shardings wanted;
        the mesh need not be the one that wrote.
      vocab_size: as in `restore_params`; the optimizer's arrays go with the tables.

    Raises:
      CheckpointError: the checkpoint holds another model (names the first tensor that differs;
        nothing is moved), none of several is whole, or the machine failed to read.
    """
    self.wait()
    steps = saved_steps(self._folder)
    for step in reversed(steps):
      path = self._folder / str(step)
      restored, reason = None, "unreadable in another process"
      try:
        restored = self._restore_step(path, step, abstract_params, abstract_optimizer, vocab_size)
      except _DamagedError as error:
        reason = str(error)
      if _true_everywhere(restored is not None):
        return restored
      if jax.process_index() == 0:
        aside = _free_name(path)
        path.rename(aside)
        _log.warning("checkpoint %d is damaged (%s); it is now %s", step, reason, aside)
      _true_everywhere(True)  # no process lists the folder before it is moved
      self._manager.close()
      self._manager = self._open()  # to list the steps anew
    if steps:
      raise CheckpointError(f"none of the {len(steps)} checkpoints in {self._folder} is whole")
    return None

  def _restore_step(
    self, path: epath.Path, step: int, abstract_params: Any, abstract_optimizer: Any, vocab_size
  ) -> Restored:
    _require_same_model(path, "params", abstract_params, vocab_size, same_dtype=True)
    _require_same_model(path, "optimizer", abstract_optimizer, vocab_size, same_dtype=True)
    items = _read(
      path,
      params=_restore_args(abstract_params),
      optimizer=_restore_args(abstract_optimizer),
      data=ocp.args.JsonRestore(),
    )
    return Restored(step, items["params"], items["optimizer"], items["data"], metrics_of(path))

  def _failed(self, error: Exception) -> CheckpointError:
    """Clears up after a failed save, so that the next may succeed, and words the error."""
    step, self._saving = self._saving, None
    if jax.process_index() == 0:
      # What was written of it would keep a full disk full.
      for leftover in self._folder.glob(f"{step}.orbax-checkpoint-tmp*"):
        with contextlib.suppress(OSError):  # another item may still be being written
          leftover.rmtree()
    with contextlib.suppress(ValueError):  # from a damaged metrics file
      self._manager.reload()  # orbax has dropped from its list what this save was to replace
    last = latest_step(self._folder)
    stands = "no checkpoint stands" if last is None else f"the last good one is {last}"
    return CheckpointError(
      f"checkpoint {step} in {self._folder} was not saved: {_reason(error)}; {stands}"
    )


class _LatestAndBest:
  """Keeps the newest steps and the best by BEST_METRIC. orbax's BestN would rank NaN too."""

  def __init__(self, folder: epath.Path, losses: Mapping[int, float], latest: int, best: int):
    self._folder, self._losses, self._latest, self._best = folder, losses, latest, best

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    ranked = sorted((self._loss(info), -info.step) for info in checkpoints)
    keep = {-step for loss, step in ranked[: self._best] if math.isfinite(loss)}
    keep |= set(steps[-self._latest :])
    return [step in keep for step in steps]

  def _loss(self, info) -> float:
    """Returns the loss that stands with it, infinity if there is none or it is not finite."""
    loss = self._losses.get(info.step)
    if loss is None:
      metrics = info.metrics
      if metrics is None:  # saved without, or by an earlier process
        metrics = metrics_of(self._folder / str(info.step))
      loss = metrics.get(BEST_METRIC, math.inf)
    return loss if math.isfinite(loss) else math.inf


def _free_name(path: epath.Path) -> epath.Path:
  aside, count = path.with_name(f"{path.name}.damaged"), 1
  while aside.exists():
    aside, count = path.with_name(f"{path.name}.damaged.{count}"), count + 1
  return aside


def _true_everywhere(flag: bool) -> bool:
  """Returns whether `flag` holds in every process: each may have read other files."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def _restore_args(abstract: Any) -> ocp.args.StandardRestore:
  """Asks for `abstract`; a leaf without a sharding goes to the first device.

  Else orbax would take the sharding stored, which names the devices of the machine that wrote. Not
  strict: a shape that differs from the stored one, which `_require_same_model` allows for the
  padding of tables alone, is cut or filled with zeros.
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
  """Tells what a failed read means, and lets it leave neither memory nor noise behind.

  The arrays read so far must not stand beside those of the next older checkpoint. And orbax
  abandons its other reads, which Python would report one by one, with tracebacks.
  """
  report, sys.unraisablehook = sys.unraisablehook, lambda _: None
  try:
    yield
  except Exception as error:
    traceback.clear_frames(error.__traceback__)
    time.sleep(0.05)  # until the reads under way have noticed
    gc.collect()
    raise _damage(error) from error
  finally:
    sys.unraisablehook = report


def _saved_tree(path: epath.Path) -> Any:
  """Returns the tree of orbax's array metadata of one item (custom nodes as dictionaries)."""
  with _reading():
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def _read(path: epath.Path, **items) -> ocp.args.Composite:
  """Reads items of one checkpoint, each process its own shards.

  The processes do not wait for one another here: one that finds damage could not tell the rest,
  and they would hang in orbax's barrier. `restore` lets them agree afterwards.
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


def _require_same_model(
  path: epath.Path, item: str, abstract: Any, vocab_size: int | None, *, same_dtype: bool
) -> None:
  """Raises CheckpointError naming the first tensor that is missing, extra or of another shape.

  Arrays of the tables over the vocabulary may have other rows past `vocab_size`.
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
  """`saved` with the length of `shape` where only the padding of a table's rows differs."""
  if not _TABLES & set(name.split("/")) or len(saved.shape) != len(shape):
    return saved
  same = [n == m or min(n, m) >= vocab_size for n, m in zip(saved.shape, shape)]
  return jax.ShapeDtypeStruct(shape, saved.dtype) if all(same) else saved


def _by_name(tree: Any) -> dict[str, Any]:
  """Maps the path of each array to the array; the same for a tree and for its saved form."""
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
  """Tells damage from a machine that cannot read just now; the latter must move no checkpoint."""
  elsewhere = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED"
  if isinstance(error, (MemoryError, PermissionError, TimeoutError)) or re.search(
    elsewhere, str(error)
  ):
    return CheckpointError(f"could not read the checkpoint: {_reason(error)}")
  return _DamagedError(_reason(error))


def _reason(error: BaseException) -> str:
  """Returns the cause in a few words: the system's own where there is one."""
  if isinstance(error, OSError) and error.strerror:
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
  if code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's form
    return os.strerror(int(code.group(1)))
  lines = str(error).strip().splitlines()
  return lines[0][:300] if lines else type(error).__name__
