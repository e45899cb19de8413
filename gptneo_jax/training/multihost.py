"""A run of several processes: start-up, rows and data streams of each, failures, signals."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from gptneo_jax.errors import UserError, first_line
from gptneo_jax.sharding import BATCH_SPEC

T = TypeVar("T")

# --- start and end --------------------------------------------------------------------------------

# Keys that all processes see.
_FAILURE, _SEEN, _DONE = (f"gptneo_jax/{name}" for name in ("failure", "failure_seen", "done"))
_JOIN_SECONDS = 300  # for all processes to have started
_POLL_SECONDS = 0.5
_LEAVE_SECONDS = 10  # for the others to have seen a failure


@contextlib.contextmanager
def joined(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
  """Joins the other processes, if there are any. Enter it before the first use of a device.

  With no argument the launcher's environment decides (SLURM, GKE, Cloud TPU, Open MPI). An error in
  one process ends all within seconds, with status 1 and one line that names the process and the
  error; the process itself also prints the traceback of an unexpected one. If a process does not
  join within 5 minutes, the others end. Raises UserError if the arguments or the environment are
  incomplete.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given) and None in given:
    raise UserError("--coordinator_address, --num_processes and --process_id go together")
  if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
    raise UserError(f"--coordinator_address {coordinator!r} is not HOST:PORT, of process 0")
  if coordinator is None and not _in_cluster():
    yield
    return
  # JAX itself would abort, with a stack trace.
  patience = threading.Timer(_JOIN_SECONDS, _end_alone)
  patience.daemon = True
  patience.start()
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, initialization_timeout=_JOIN_SECONDS + 60
    )
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(
      f"cannot join the other processes: {first_line(error)}; give each"
      " --coordinator_address HOST:PORT, --num_processes and --process_id"
    ) from None
  finally:
    patience.cancel()
  failures, ended = _Failures(), threading.Event()
  threading.Thread(target=failures.watch, args=(ended,), daemon=True).start()
  try:
    yield
    failures.wait_for_all()
  except (Exception, KeyboardInterrupt) as error:
    failures.end_all(error)
  finally:
    ended.set()


def _end_alone() -> None:
  print(
    f"error: not all processes have joined within {_JOIN_SECONDS} s: run the same command on"
    " every host, and each must reach the first one's address",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


class _Failures:
  """Ends all processes when one fails, through the key-value store of JAX's coordinator.

  The others may be waiting in a collective or a barrier that will never end, where Python cannot
  interrupt them: a thread polls for the failure and ends the process.
  """

  def __init__(self):
    from jax._src import distributed  # public nowhere; multihost_utils reaches it like this

    state = distributed.global_state
    self._client: Any = state.client
    self._id, self._number = state.process_id, state.num_processes
    self._leaving = threading.Lock()

  def watch(self, ended: threading.Event) -> None:
    while not ended.wait(_POLL_SECONDS):
      try:
        line = self._client.key_value_try_get(_FAILURE)
      except RuntimeError:  # there is none
        continue
      self._leave(line)

  def wait_for_all(self) -> None:
    """Returns when all are done: until then a failure of another still ends this process."""
    self._client.key_value_set(f"{_DONE}/{self._id}", "")
    while self._count(_DONE) < self._number:
      time.sleep(0.1)

  def _count(self, key: str) -> int:
    return len(self._client.key_value_dir_get(key))

  def end_all(self, error: BaseException) -> None:
    """Tells the others and ends this process."""
    line = (
      f"error on process {self._id} ({socket.gethostname()}):"
      f" {'interrupted' if isinstance(error, KeyboardInterrupt) else _one_line(error)}"
    )
    try:
      self._client.key_value_set(_FAILURE, line)
      unexpected = isinstance(error, Exception) and not isinstance(error, UserError)
    except RuntimeError:  # another was first, and this error may be the loss of that process
      with contextlib.suppress(RuntimeError):
        line = self._client.key_value_try_get(_FAILURE)
      unexpected = False
    self._leave("".join(traceback.format_exception(error)) + line if unexpected else line)

  def _leave(self, text: str) -> None:
    """Ends this process when all have seen the failure, or after a while; an earlier end would make
    the others report the loss of this process instead."""
    self._leaving.acquire()  # never released: the other thread prints nothing
    print(text, file=sys.stderr)
    deadline = time.monotonic() + _LEAVE_SECONDS
    with contextlib.suppress(RuntimeError):
      self._client.key_value_set(f"{_SEEN}/{self._id}", "")
      while self._count(_SEEN) < self._number and time.monotonic() < deadline:
        time.sleep(0.1)
    if self._id == 0:
      time.sleep(1)  # the coordinator ends last: processes that lose it abort
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # not sys.exit, which would wait for the other processes


def _one_line(error: BaseException) -> str:
  text = (str(error).strip().splitlines() or [""])[0]
  return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _in_cluster() -> bool:
  """True where this process is one of several, by the environment that their launcher made."""
  # Of the job step: SLURM_NTASKS is there too for a program that no srun has started.
  counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MEGASCALE_NUM_SLICES")
  lists = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
  if any(os.environ.get(name, "1") not in ("", "0", "1") for name in counts):
    return True
  if any("," in os.environ.get(name, "") for name in lists):
    return True
  # A Cloud TPU machine knows its slice from its metadata server; Colab's and Kaggle's have none.
  on_tpu = importlib.util.find_spec("libtpu") and (
    glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  )
  return bool(on_tpu) and not {"COLAB_RELEASE_TAG", "TPU_SKIP_MDS_QUERY"} & os.environ.keys()


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
