"""The thread that owns the device: it decodes what the handlers of requests hand over.

Handlers run in an event loop; they are told of new tokens by calls from this thread, which must be
quick and thread-safe.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gptneo_jax.engine import LanguageModel
from gptneo_jax.generation.continuous import ContinuousBatch, Row, Wanted
from gptneo_jax.generation.decode import GenerationRequest
from gptneo_jax.model.matmul import exact_products

_log = logging.getLogger(__name__)


class QueueFull(Exception):
  """There are as many requests waiting as may."""


class Closed(Exception):
  """The server is shutting down, or the device has failed."""


class Generator:
  """Decodes requests for many callers at once, in a thread of its own. Use it as a context.

  waiting: how many rows may wait for a slot.
  """

  def __init__(self, lm: LanguageModel, *, slots: int, kept_bytes: int, waiting: int):
    self._mesh, self._dtype = lm.mesh, lm.config.dtype
    with self._on_device():
      self._batch = ContinuousBatch(lm.config, lm.unstacked_params, slots, kept_bytes)
    # A model with a head decodes nothing.
    self._warming_up, self._compiled = self._batch.warm_up(), float(not lm.config.has_lm_head)
    self._most_waiting = waiting
    self._changed = threading.Condition()
    self._tasks: collections.deque[Callable[[], None]] = collections.deque()
    self._listeners: dict[Row, Callable[[Row], None]] = {}
    self._queued = 0  # rows that have been handed over and have not ended
    self._slots = slots
    self._refusing = self._closing = False
    self.failed: BaseException | None = None
    self._thread = threading.Thread(target=self._run, name="device", daemon=True)

  def __enter__(self) -> Generator:
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self.stop()
    self._thread.join()

  def refuse(self) -> None:
    """Takes no more rows; those that are there go on."""
    self._refusing = True

  def stop(self) -> None:
    """Ends all rows as cancelled, and then the thread."""
    self._hand_over(self._close)

  @property
  def rows(self) -> int:
    """Rows that are decoded or wait."""
    return self._queued

  @property
  def compiled(self) -> float:
    """The share of what common requests need that is compiled: done while there is nothing else."""
    return self._compiled

  def submit(
    self,
    requests: Sequence[GenerationRequest],
    wanted: Wanted,
    listener: Callable[[int, Row], None],
  ) -> Callable[[], None]:
    """Queues rows of one caller, and returns what cancels them.

    listener: called with the number of a row and the row, whenever it has a new token or has ended.
    Raises QueueFull, Closed.
    """
    rows: list[Row] = []

    def start() -> None:
      for number, request in enumerate(requests):
        rows.append(self._batch.add(request, wanted))
        self._listeners[rows[-1]] = functools.partial(listener, number)
      if self._closing:
        stop()

    def stop() -> None:
      for row in rows:
        if not row.ended:
          self._batch.cancel(row)
          self._tell(row)

    with self._changed:
      if self._refusing or self._closing or self.failed:
        raise Closed
      if self._queued + len(requests) > self._slots + self._most_waiting:
        raise QueueFull
      self._queued += len(requests)
      # Under one lock with the question above: what is taken is also answered.
      self._hand_over(start)
    return lambda: self._hand_over(stop)

  def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
    """Runs a function in this thread, between two steps. Raises Closed."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
      if not future.set_running_or_notify_cancel():
        return
      try:
        future.set_result(function())
      except BaseException as error:
        future.set_exception(error)

    with self._changed:
      if self._closing or self.failed:
        raise Closed
      self._hand_over(run)
    return future

  # --- in the thread ------------------------------------------------------------------------------

  def _hand_over(self, task: Callable[[], None]) -> None:
    with self._changed:
      self._tasks.append(task)
      self._changed.notify()

  def _on_device(self):
    stack = contextlib.ExitStack()
    stack.enter_context(jax.set_mesh(self._mesh))
    stack.enter_context(exact_products(self._dtype))
    return stack

  def _run(self) -> None:
    with self._on_device():
      while not (self._closing and not self._tasks):
        with self._changed:
          while not self._tasks and self._batch.idle and self._compiled == 1.0:
            self._changed.wait()
          tasks = list(self._tasks)
          self._tasks.clear()
        for task in tasks:
          task()
        try:
          if self._batch.idle and self._compiled < 1.0 and not self._closing:
            self._compile_more()
          for row in self._batch.advance():
            self._tell(row)
        except BaseException as error:  # of the device: nothing can go on
          _log.exception("the device has failed")
          self.failed = error
          self._close()

  def _compile_more(self) -> None:
    self._compiled = next(self._warming_up)
    if self._compiled == 1.0:
      _log.info("all is compiled that common requests need")

  def _tell(self, row: Row) -> None:
    listener = self._listeners[row]
    if row.ended:
      del self._listeners[row]
      with self._changed:
        self._queued -= 1
    listener(row)

  def _close(self) -> None:
    with self._changed:
      self._closing = True
    for row in list(self._listeners):
      self._batch.cancel(row)
      self._tell(row)
