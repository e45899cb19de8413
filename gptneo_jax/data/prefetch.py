"""Draws items of an iterator ahead in a thread; each keeps the state that follows it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item", covariant=True)


class StatefulIterator(Iterator[Item], Protocol[Item]):
  """An iterator without end that resumes from a state; `get_state` returns a new object."""

  def get_state(self) -> dict: ...

  def set_state(self, state: dict) -> None: ...


class Prefetcher:
  """Draws up to `number` items ahead of the consumer in one thread; with 0, none ahead.

  The state is the consumer's, not the thread's: it follows the item last returned. An exception is
  raised in place of the item that it prevented, and again at each further call until `set_state`.
  """

  def __init__(self, iterator: StatefulIterator, number: int):
    self._iterator, self._number = iterator, number
    self._state = iterator.get_state()
    self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    self._ahead: deque[Future[tuple[Any, dict]]] = deque()
    self._failure: Exception | None = None

  def __next__(self) -> Any:
    if not self._number:
      item, self._state = self._draw()
      return item
    while len(self._ahead) <= self._number:
      self._ahead.append(self._thread.submit(self._draw))
    item, self._state = self._ahead[0].result()
    self._ahead.popleft()  # only now, so that an interrupted wait loses no item
    return item

  def get_state(self) -> dict:
    return self._state

  def set_state(self, state: dict) -> None:
    """Drops what was read ahead, once the item that is being made is finished."""
    for future in self._ahead:
      future.cancel()
    wait(self._ahead)
    self._ahead.clear()
    self._failure = None
    self._iterator.set_state(state)
    self._state = self._iterator.get_state()

  def close(self) -> None:
    """Waits for the item that is being made and ends the thread; no item can be drawn later."""
    self._thread.shutdown(cancel_futures=True)

  def _draw(self) -> tuple[Any, dict]:
    # A failed draw may have used up part of an item, so none is drawn after it.
    if self._failure is not None:
      raise self._failure
    try:
      return next(self._iterator), self._iterator.get_state()
    except Exception as error:
      self._failure = error
      raise
