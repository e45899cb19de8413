"""Global state that lm-evaluation-harness reads, set for a `with` block and restored after it."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np

_SECONDS = 5  # to reach the hub


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
  """The harness logs errors only: else it warns of every default that a task relies on."""
  logger = logging.getLogger("lm_eval")
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


@contextlib.contextmanager
def no_progress_bars_in_files() -> Iterator[None]:
  """Off a terminal the harness and `datasets` show no progress bars, which are one long line
  there."""
  if sys.stderr.isatty():
    yield
    return
  import datasets
  from lm_eval.api import task

  bar, switched_off = task.tqdm, datasets.are_progress_bars_disabled()
  task.tqdm = functools.partial(bar, disable=True)  # pyrefly: ignore[bad-assignment]
  datasets.disable_progress_bars()
  try:
    yield
  finally:
    task.tqdm = bar
    if not switched_off:
      datasets.enable_progress_bars()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
  """Seeds the global generators of Python and NumPy, from which harness tasks draw."""
  before, before_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
  random.seed(seed)
  np.random.seed(seed)  # noqa: NPY002
  try:
    yield
  finally:
    random.setstate(before)
    np.random.set_state(before_numpy)  # noqa: NPY002


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
  """Data sets come from the cache alone if the hub cannot be reached.

  Otherwise each of them would be tried for half a minute.
  """
  import datasets
  import huggingface_hub

  modules = (datasets.config, huggingface_hub.constants)
  before = [module.HF_HUB_OFFLINE for module in modules]
  if not any(before) and not _reachable(huggingface_hub.constants.ENDPOINT):
    for module in modules:
      module.HF_HUB_OFFLINE = True
  try:
    yield
  finally:
    for module, value in zip(modules, before):
      module.HF_HUB_OFFLINE = value


def _reachable(address: str) -> bool:
  try:
    urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS)
  except urllib.error.HTTPError:
    return True  # it answered
  except OSError:
    return False
  return True
