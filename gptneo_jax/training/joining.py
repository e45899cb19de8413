"""Joins the processes of a run, and ends all of them when one fails, is lost or never comes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gptneo_jax.cli import one_of_several
from gptneo_jax.errors import UserError, first_line
from gptneo_jax.training.meeting import Peers, meet

# Keys that all processes see.
_FAILURE, _SEEN, _DONE = (f"gptneo_jax/{name}" for name in ("failure", "failure_seen", "done"))
_JOIN_SECONDS = 300  # for all processes to have started
_POLL_SECONDS = 0.5
_LEAVE_SECONDS = 10  # for the others to have seen a failure
_LOSS_SECONDS = 2  # for the loss of a process to be known, after an error that may follow from it

_leaving = threading.Lock()  # never released: another thread prints nothing
_handlers: list[Any] = []  # of signals; C holds them
_met: list[Peers] = []  # connected until the process ends: the others would take less for a loss


@contextlib.contextmanager
def joined(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
  """Joins the other processes, if there are any. Enter it before the first use of a device.

  With no argument the launcher's environment decides (SLURM, GKE, Cloud TPU, Open MPI). If a
  process does not join within 5 minutes, all others end and name it. Later an error in one process
  ends all within seconds, with status 1 and one line that names the process and the error; the
  process itself also prints the traceback of an unexpected one. A process that is killed, or a host
  that is gone, ends all in the same way, the host within about a minute. Raises UserError if the
  arguments or the environment are incomplete.
  """
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given) and None in given:
    raise UserError("--coordinator_address, --num_processes and --process_id go together")
  if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
    raise UserError(f"--coordinator_address {coordinator!r} is not HOST:PORT, of process 0")
  if coordinator is None and not one_of_several():
    yield
    return
  peers = _join(*given)
  failures, ended = _Failures(peers), threading.Event()
  threading.Thread(target=failures.watch, args=(ended,), daemon=True).start()
  try:
    yield
    failures.wait_for_all()
  except (Exception, KeyboardInterrupt) as error:
    failures.end_all(error)
  finally:
    ended.set()


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Peers:
  from jax._src.clusters import ClusterEnv  # public nowhere; jax.distributed asks it like this

  try:
    address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
      coordinator, num_processes, process_id, None, None, _JOIN_SECONDS
    )
    if address is None or count is None or number is None:
      raise ValueError("the launcher's environment does not say how many there are, and where")
    if not 0 <= number < count:
      raise ValueError(f"process_id {number} is not one of {count}, from 0")
    peers = meet(address, count, number, _JOIN_SECONDS)
    told = _told_of_loss(lambda: _end_without_0(peers)) if number else contextlib.nullcontext()
    with told:
      jax.distributed.initialize(address, count, number, local_device_ids=devices)
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(
      f"cannot join the other processes: {first_line(error)}; give each"
      " --coordinator_address HOST:PORT, --num_processes and --process_id"
    ) from None
  _met.append(peers)
  return peers


@contextlib.contextmanager
def _told_of_loss(end: Callable[[], None]) -> Iterator[None]:
  """A client of JAX's coordinator that is made in here calls `end` where it would end the process.

  By itself it does that at the loss of process 0, in a race with our own thread, with a line that
  names nobody. jaxlib cannot pass the callback its argument (std::bad_cast) and aborts in place of
  the call; then the handler of that signal calls `end`, in the same thread.
  """
  from jax._src.lib import _jax

  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: end())
  _handlers.append(handler)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
  make = _jax.get_distributed_runtime_client
  _jax.get_distributed_runtime_client = functools.partial(
    make, missed_heartbeat_callback=lambda *_: end()
  )
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = make


def _end_without_0(peers: Peers) -> None:
  """Ends this process if process 0 is gone, and names it. Nobody can be asked or told any more:
  each process sees it by itself."""
  if 0 in peers.lost(_LOSS_SECONDS):
    _leaving.acquire()
    _say_last(_of_loss(peers, [0]))
    os._exit(1)


def _of_loss(peers: Peers, lost: list[int]) -> str:
  return (
    f"error: {peers.named(lost)} is gone without a word: it was killed, perhaps for memory,"
    " or its host is lost; start the run again on all hosts, it resumes from its last checkpoint"
  )


class _Failures:
  """Ends all processes when one fails or is lost, through the key-value store of JAX's coordinator.

  The others may be waiting in a collective or a barrier that will never end, where Python cannot
  interrupt them: a thread polls for the failure and ends the process.
  """

  def __init__(self, peers: Peers):
    from jax._src import distributed  # public nowhere; multihost_utils reaches it like this

    state = distributed.global_state
    self._client: Any = state.client
    self._id, self._number, self._peers = state.process_id, state.num_processes, peers

  def watch(self, ended: threading.Event) -> None:
    while not ended.is_set():
      lost = self._peers.lost(_POLL_SECONDS)
      if ended.is_set():
        return
      if 0 in lost:
        _end_without_0(self._peers)
      if line := self._failure():  # the end of a process that has seen it is no loss
        self._leave(line)
      if lost:
        self._number -= len(lost)
        with contextlib.suppress(RuntimeError):  # another failure was first
          self._client.key_value_set(_FAILURE, _of_loss(self._peers, lost))
        self._leave(self._failure())

  def _failure(self) -> str:
    try:
      return self._client.key_value_try_get(_FAILURE)
    except RuntimeError:  # there is none
      return ""

  def wait_for_all(self) -> None:
    """Returns when all are done: until then a failure of another still ends this process."""
    self._client.key_value_set(f"{_DONE}/{self._id}", "")
    while self._count(_DONE) < self._number:
      time.sleep(0.1)

  def _count(self, key: str) -> int:
    return len(self._client.key_value_dir_get(key))

  def end_all(self, error: BaseException) -> None:
    """Tells the others and ends this process."""
    unexpected = isinstance(error, Exception) and not isinstance(error, UserError)
    if unexpected:
      time.sleep(_LOSS_SECONDS)  # if a process is lost, the thread that watches ends this one
    line = (
      f"error on process {self._id} ({socket.gethostname()}):"
      f" {'interrupted' if isinstance(error, KeyboardInterrupt) else _one_line(error)}"
    )
    try:
      self._client.key_value_set(_FAILURE, line)
    except RuntimeError:  # another was first, and this error may be the loss of that process
      line = self._failure() or line
      unexpected = False
    self._leave("".join(traceback.format_exception(error)) + line if unexpected else line)

  def _leave(self, text: str) -> None:
    """Prints why, and ends this process; process 0 when all others have seen it, or after a while:
    JAX aborts those that lose it."""
    _leaving.acquire()
    _say_last(text)
    deadline = time.monotonic() + _LEAVE_SECONDS
    with contextlib.suppress(RuntimeError):  # process 0 is lost
      self._client.key_value_set(f"{_SEEN}/{self._id}", "")
      while self._id == 0 and self._count(_SEEN) < self._number and time.monotonic() < deadline:
        time.sleep(0.1)
    if self._id == 0:
      time.sleep(1)  # for their exit
    sys.stdout.flush()
    os._exit(1)  # not sys.exit, which would wait for the other processes


def _say_last(text: str) -> None:
  """Prints why this process ends; what JAX's threads still say of it is not shown, so this is the
  last line."""
  with contextlib.suppress(OSError):  # nobody reads it: the process ends all the same
    sys.stderr.flush()
    shown = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with os.fdopen(shown, "wb") as file:
      file.write(f"{text}\n".encode())


def _one_line(error: BaseException) -> str:
  text = (str(error).strip().splitlines() or [""])[0]
  return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
