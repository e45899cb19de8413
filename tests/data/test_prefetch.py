"""Reading ahead: the consumer's state, failures in their place, and no thread left over."""

import threading
import time

import pytest

from gptneo_jax.data.prefetch import Prefetcher


class Counter:
  """0, 1, 2, … of which `failing` raises; a draw that fails uses up two numbers."""

  def __init__(self, failing=-1, seconds=0.0):
    self.number, self.failing, self.seconds = 0, failing, seconds
    self.drawn = threading.Semaphore(0)

  def __iter__(self):
    return self

  def __next__(self):
    time.sleep(self.seconds)
    self.number += 1
    self.drawn.release()
    if self.number - 1 == self.failing:
      self.number += 1
      raise OSError(f"no {self.failing}")
    return self.number - 1

  def get_state(self):
    return {"number": self.number}

  def set_state(self, state):
    self.number = state["number"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
  before = threading.active_count()
  yield
  assert threading.active_count() == before


@pytest.mark.parametrize("number", [0, 1, 3])
def test_state_follows_the_item_last_returned(number):
  prefetcher = Prefetcher(Counter(), number)
  assert prefetcher.get_state() == {"number": 0}
  for item in range(8):
    assert next(prefetcher) == item
    assert prefetcher.get_state() == {"number": item + 1}
  prefetcher.set_state({"number": 3})
  assert prefetcher.get_state() == {"number": 3}
  assert [next(prefetcher) for _ in range(5)] == [3, 4, 5, 6, 7]
  prefetcher.close()


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_items_are_drawn_ahead_as_asked_for(number):
  counter = Counter()
  prefetcher = Prefetcher(counter, number)
  assert counter.number == 0  # nothing before the first item is asked for
  for item in range(3):
    next(prefetcher)
    for _ in range(number + 1 if item == 0 else 1):
      assert counter.drawn.acquire(timeout=10)
    assert not counter.drawn.acquire(timeout=0.05)
  prefetcher.close()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_failure_comes_after_the_items_before_it_and_is_repeated(number):
  prefetcher = Prefetcher(Counter(failing=2), number)
  assert [next(prefetcher), next(prefetcher)] == [0, 1]
  for _ in range(3):
    with pytest.raises(OSError, match="no 2"):
      next(prefetcher)
    assert prefetcher.get_state() == {"number": 2}
  prefetcher.set_state({"number": 3})
  assert next(prefetcher) == 3
  prefetcher.close()


def test_interrupted_wait_loses_no_item(monkeypatch):
  prefetcher = Prefetcher(Counter(), 2)
  assert next(prefetcher) == 0
  result = type(prefetcher._ahead[0]).result

  def interrupted(self, timeout=None):
    monkeypatch.undo()
    raise KeyboardInterrupt

  monkeypatch.setattr(type(prefetcher._ahead[0]), "result", interrupted)
  with pytest.raises(KeyboardInterrupt):
    next(prefetcher)
  assert type(prefetcher._ahead[0]).result is result
  assert prefetcher.get_state() == {"number": 1}
  assert [next(prefetcher), next(prefetcher)] == [1, 2]
  prefetcher.close()


def test_close_waits_for_one_item_and_not_for_those_ahead():
  counter = Counter(seconds=0.2)
  prefetcher = Prefetcher(counter, 50)
  assert next(prefetcher) == 0
  start = time.perf_counter()
  prefetcher.close()
  assert time.perf_counter() - start < 2
  assert counter.number < 10
  prefetcher.close()
  with pytest.raises(RuntimeError, match="shutdown"):
    next(prefetcher)


def test_going_back_while_reading_ahead():
  counter = Counter(seconds=0.001)
  prefetcher = Prefetcher(counter, 3)
  for item in range(50):
    prefetcher.set_state({"number": item})
    assert next(prefetcher) == item
  prefetcher.close()
