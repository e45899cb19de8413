"""A run of several processes: rows and data streams of each, what they agree on, signals."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from gptneo_jax.errors import UserError
from gptneo_jax.sharding import BATCH_SPEC

T = TypeVar("T")

# For a new file to be seen by the others; file systems of a network keep what they know so long.
_SHARED_SECONDS = 60


def is_host0() -> bool:
  """True on the one process that writes and prints."""
  return jax.process_index() == 0


# --- who feeds which rows -------------------------------------------------------------------------


def rows_by_host(mesh: Mesh, batch_size: int) -> dict[int, np.ndarray]:
  """The rows of a global batch that each host's devices hold, ascending, by process index.

  The same on every host, and for a mesh of a described topology. On a torus the rows of a host need
  not be contiguous. Raises UserError unless any two hosts hold the same rows or none in common, and
  all hold equally many.
  """
  held: dict[int, set[int]] = {}
  sharding = NamedSharding(mesh, BATCH_SPEC)
  for device, (rows,) in sharding.devices_indices_map((batch_size,)).items():
    held.setdefault(device.process_index, set()).update(range(*rows.indices(batch_size)))
  groups = {frozenset(rows) for rows in held.values()}
  if sum(map(len, groups)) != batch_size or len({len(rows) for rows in groups}) > 1:
    raise UserError(
      f"mesh.tensor {mesh.shape['tensor']} divides the {mesh.size} devices across the borders of"
      f" the {len(held)} hosts, so that some share a part of their rows; choose one that divides"
      f" the {mesh.size // len(held)} devices of a host, or is a multiple of it"
    )
  return {host: np.array(sorted(rows)) for host, rows in sorted(held.items())}


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a global batch that this host's devices hold, ascending."""
  return rows_by_host(mesh, batch_size)[jax.process_index()]


def streams_by_host(mesh: Mesh, batch_size: int, num_streams: int) -> dict[int, range]:
  """The virtual data streams that fill each host's rows, by process index.

  Hosts of the same rows form a group and read the same streams. In the order of their first rows,
  group g of G takes the g-th of G blocks of streams, which fill the rows it holds in ascending
  order. So a batch is the same set of rows on any number of hosts. Where a host's rows are not
  contiguous the set is in another order, which changes sums over rows by rounding only.

  Raises UserError if the number of groups does not divide the number of streams.
  """
  held = {host: tuple(rows) for host, rows in rows_by_host(mesh, batch_size).items()}
  groups = sorted(set(held.values()))
  if num_streams % len(groups):
    raise UserError(
      f"data.num_streams {num_streams} cannot be shared out among {len(groups)} hosts (those of the"
      f" same rows counted once): choose a multiple of {len(groups)} that divides batch_size"
      f" {batch_size}"
    )
  share = num_streams // len(groups)
  blocks = {rows: range(g * share, (g + 1) * share) for g, rows in enumerate(groups)}
  return {host: blocks[rows] for host, rows in held.items()}


def local_streams(mesh: Mesh, batch_size: int, num_streams: int) -> range:
  """The virtual data streams that fill this host's rows: see `streams_by_host`."""
  return streams_by_host(mesh, batch_size, num_streams)[jax.process_index()]


# --- agreement ------------------------------------------------------------------------------------


def run_on_host0_first(action: Callable[[], T]) -> T:
  """Runs `action` on host 0, then on the others, which find the files it has written."""
  if jax.process_count() == 1:
    return action()
  results = [action()] if is_host0() else []
  multihost_utils.sync_global_devices("run_on_host0_first")
  return results[0] if results else action()


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


def require_shared(folder: epath.Path) -> epath.Path:
  """The folder itself, when every host sees what host 0 writes there.

  Buckets are not asked. Raises UserError on each host that sees another folder; the others wait for
  it to end them.
  """
  if jax.process_count() == 1 or "://" in str(folder):
    return folder
  path, name = os.path.abspath(folder), f".seen_by_all_{secrets.token_hex(8)}"
  if is_host0():
    try:
      os.makedirs(path, exist_ok=True)
      pathlib.Path(path, name).touch()
    except OSError as error:
      raise UserError(f"{path} cannot be written: {error.strerror}") from None
  writer, place, name = gather_objects([socket.gethostname(), path, name])[0]
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (seen := _lists(path, name)) and time.monotonic() < deadline:
    time.sleep(0.2)
  all_seen = all(gather_objects(seen))
  if is_host0():
    pathlib.Path(path, name).unlink()
  if not seen:
    raise UserError(
      f"what process 0 ({writer}) writes in {place} is not seen in {path} here: the hosts do not"
      " share the folder; --workdir must be on a file system that all of them see, by the same"
      " path, or gs://"
    )
  if not all_seen:
    multihost_utils.sync_global_devices("ended by the host that does not see the folder")
  return folder


def _lists(folder: str, name: str) -> bool:
  try:
    return name in os.listdir(folder)  # which asks the server; looking for one file may not
  except OSError:
    return False


class StopRequest:
  """Whether a signal has asked the run to stop, on any host. Close it when the run ends.

  The signals are SIGTERM, SIGUSR1 (SLURM's --signal), and SIGINT (Ctrl-C) once: a second Ctrl-C
  does what it did before. The n-th call returns the same on all hosts.

  Attributes:
    reason: name of the signal.
    status: exit status of a run that it stopped.
  """

  def __init__(self):
    self.reason, self.status = "a signal", 128 + signal.SIGTERM
    self._requested, self._calls = False, 0
    self._before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
      return  # Python gives signals to the main thread only
    stops = [signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    if jax.process_count() == 1:  # with more, JAX's own notifier listens for it
      stops.append(signal.SIGTERM)
    for number in stops:
      self._before[number] = signal.signal(number, self._receive) or signal.SIG_DFL

  def _receive(self, number: int, _: Any) -> None:
    self.reason = signal.Signals(number).name
    if number == signal.SIGINT:
      self.status = 128 + signal.SIGINT
      signal.signal(signal.SIGINT, self._before.pop(signal.SIGINT))
    if jax.process_count() > 1:  # the notifier tells the others
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self._requested = True

  def __call__(self) -> bool:
    if jax.process_count() > 1 and not self._requested:
      self._calls += 1  # the hosts agree on the number of a call, which they all make
      self._requested = multihost_utils.reached_preemption_sync_point(self._calls)
    return self._requested

  def close(self) -> None:
    """Restores the handlers that were there before."""
    for number, before in self._before.items():
      signal.signal(number, before)
    self._before.clear()
