"""Several hosts, one run: start-up, which rows a host feeds, and what all must agree on."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from gptneo_jax.errors import UserError
from gptneo_jax.sharding import BATCH_SPEC

T = TypeVar("T")


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the other processes, if there are any; to be called before the first use of a device.

  With no argument the launcher's environment decides (SLURM, GKE, Cloud TPU, Open MPI). Raises
  UserError if the arguments are incomplete or the coordinator cannot be reached.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given) and None in given:
    raise UserError("--coordinator_address, --num_processes and --process_id go together")
  if coordinator is None and not _in_cluster():
    return
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"cannot join the other processes: {str(error).splitlines()[0]}") from None


def _in_cluster() -> bool:
  """True where jax.distributed can read from the environment which processes there are."""
  tasks = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
  if any(int(count) > 1 for count in tasks) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
    return True
  # A Cloud TPU machine knows its slice from its metadata server; Colab's has none.
  on_tpu = importlib.util.find_spec("libtpu") and (
    glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  )
  return bool(on_tpu) and "COLAB_RELEASE_TAG" not in os.environ


def is_first() -> bool:
  """True on the one process that writes and prints."""
  return jax.process_index() == 0


def first_then_others(action: Callable[[], T]) -> T:
  """Runs `action` on the first process, then on the others, which find the files it has written."""
  if jax.process_count() == 1:
    return action()
  results = [action()] if is_first() else []
  multihost_utils.sync_global_devices("first_then_others")
  return results[0] if results else action()


def local_rows(mesh: Mesh, batch_size: int) -> range:
  """The rows of a global batch that this host's devices hold."""
  slices = NamedSharding(mesh, BATCH_SPEC).addressable_devices_indices_map((batch_size,)).values()
  starts_stops = {rows[0].indices(batch_size)[:2] for rows in slices if rows is not None}
  start, stop = min(s for s, _ in starts_stops), max(s for _, s in starts_stops)
  if sum(b - a for a, b in starts_stops) != stop - start:
    raise UserError(
      "the rows of a batch that this host holds are not contiguous; order the mesh so that"
      " mesh.data and mesh.fsdp span hosts before mesh.tensor does"
    )
  return range(start, stop)


def local_streams(mesh: Mesh, batch_size: int, num_streams: int) -> range:
  """The virtual data streams that fill this host's rows; UserError if S does not fit the hosts."""
  if batch_size % num_streams:
    raise UserError(f"data.num_streams {num_streams} does not divide batch_size {batch_size}")
  rows, per_stream = local_rows(mesh, batch_size), batch_size // num_streams
  if rows.start % per_stream or rows.stop % per_stream:
    raise UserError(
      f"data.num_streams {num_streams} cannot be shared out among the {jax.process_count()} hosts:"
      f" choose a multiple of {jax.process_count()}"
    )
  return range(rows.start // per_stream, rows.stop // per_stream)


def gather_objects(value: Any) -> list[Any]:
  """Every host's JSON-serialisable `value`, in process order, on every host."""
  if jax.process_count() == 1:
    return [value]
  payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(payload.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: payload.size] = payload
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


class StopRequest:
  """Has SIGTERM arrived, on any host? All hosts get the same answer for the same step."""

  def __init__(self):
    self._received = False
    if jax.process_count() == 1:  # with more, JAX's own notifier listens for it
      signal.signal(signal.SIGTERM, self._receive)

  def _receive(self, *_: Any) -> None:
    self._received = True

  def at(self, step: int) -> bool:
    if jax.process_count() == 1:
      return self._received
    return multihost_utils.reached_preemption_sync_point(step)
