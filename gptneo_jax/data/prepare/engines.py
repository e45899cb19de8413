"""Who does the parts of the work: this process, a pool of processes, or a Ray cluster.

Each engine takes a step of the work, such as `units.run`, and yields, as files are done, (a line to
be said or '', what is in it: tokens or records).
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pathlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.errors import UserError

Progress = Iterator[tuple[str, int]]
Step = Callable[[Settings, pathlib.Path, Part, Callable[[str], object]], Iterator[tuple[str, int]]]
_TRIES = 3  # of a part whose machine is lost


def in_this_process(step: Step, settings: Settings, folder: pathlib.Path, part: Part) -> Progress:
  said: list[str] = []
  for _, count in step(settings, folder, part, said.append):
    yield "\n".join(said), count
    said.clear()


def in_a_pool(step: Step, settings: Settings, folder: pathlib.Path, workers: int) -> Progress:
  """A part for each worker. Raises the first error of any."""
  context = multiprocessing.get_context("spawn")
  messages = context.Queue()
  with concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_start_worker, initargs=(messages,)
  ) as pool:
    parts = [Part(index, workers) for index in range(workers)]
    working = [pool.submit(_work_of_pool, step, settings, folder, part) for part in parts]

    def left() -> bool:
      for one in working:
        if one.done():
          one.result()
      return not all(one.done() for one in working)

    try:
      yield from _told(messages, queue.Empty, left)
    except BaseException:
      for process in multiprocessing.active_children():
        process.terminate()
      raise


def on_ray(step: Step, settings: Settings, folder: pathlib.Path) -> Progress:
  """A part for each CPU of the cluster that RAY_ADDRESS names, or of one that is started here.

  All its machines see the folder and the files, and have this package. Raises UserError.
  """
  try:
    import ray
    import ray.util.queue
  except ImportError:
    raise UserError("--ray needs Ray: pip install 'gptneo_jax[prepare]'") from None
  ray.init(ignore_reinit_error=True, log_to_driver=False)
  workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
  messages = ray.util.queue.Queue(actor_options={"num_cpus": 0})
  work = ray.remote(max_retries=_TRIES)(_work)
  working = [
    work.remote(step, settings, folder, Part(index, workers), messages) for index in range(workers)
  ]

  def left() -> bool:
    done, going = ray.wait(working, num_returns=len(working), timeout=0)
    ray.get(done)
    return bool(going)

  try:
    yield from _told(messages, ray.util.queue.Empty, left)
  finally:
    for one in working:
      ray.cancel(one, force=True)


def _told(messages: Any, empty: type[Exception], left: Callable[[], bool]) -> Progress:
  """What workers have put into a queue, until none is left. left: raises what a worker raised."""
  going = True
  while going:
    going = left()
    try:
      while True:
        yield messages.get(timeout=0.2)
    except empty:
      continue


_messages: Any = None  # of a worker of a pool


def _start_worker(messages: Any) -> None:
  global _messages
  _messages = messages


def _work_of_pool(step: Step, settings: Settings, folder: pathlib.Path, part: Part) -> None:
  _work(step, settings, folder, part, _messages)


def _work(step: Step, settings: Settings, folder: pathlib.Path, part: Part, messages: Any) -> None:
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each core
  for message, count in in_this_process(step, settings, folder, part):
    messages.put((message, count))
