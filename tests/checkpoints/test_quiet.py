"""orbax is silent while a checkpoint is used; nothing global is changed afterwards."""

import logging
import sys
import types

import numpy as np
import pytest

from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.quiet import quiet_abandoned, quiet_orbax


@pytest.fixture(autouse=True)
def no_filters(monkeypatch):
  """A failure, of another test, leaves some for good."""
  for name in ("absl", "asyncio"):
    monkeypatch.setattr(logging.getLogger(name), "filters", [])


def record(path: str, level: int) -> logging.LogRecord:
  return logging.LogRecord("absl", level, path, 1, "said", None, None)


def test_only_what_orbax_logs_is_dropped():
  logger = logging.getLogger("absl")
  with quiet_orbax():
    assert not logger.filter(record("/lib/orbax/checkpoint/x.py", logging.ERROR))
    assert logger.filter(record("/lib/orbax/checkpoint/x.py", logging.CRITICAL))
    assert logger.filter(record("/lib/other/x.py", logging.ERROR))
  assert logger.filter(record("/lib/orbax/checkpoint/x.py", logging.ERROR))


def test_a_checkpointer_leaves_logger_and_hook_as_they_were(tmp_path):
  filters, hook = list(logging.getLogger("absl").filters), sys.unraisablehook
  checkpointer = Checkpointer(str(tmp_path))
  tree = {"w": np.ones(3)}
  checkpointer.save(1, params=tree, optimizer=tree, data_state={})
  assert len(logging.getLogger("absl").filters) == len(filters) + 1
  checkpointer.close()
  assert logging.getLogger("absl").filters == filters
  assert sys.unraisablehook is hook


def test_only_reports_of_abandoned_reads_are_dropped(monkeypatch):
  passed_on = []
  monkeypatch.setattr(sys, "unraisablehook", passed_on.append)

  def report(error, source=None):
    return types.SimpleNamespace(exc_value=error, object=source)

  async def ours():
    pass

  code = compile("async def read(): pass", "/lib/orbax/checkpoint/x.py", "exec")
  scope: dict = {}
  exec(code, scope)
  coroutines = ours(), scope["read"]()
  others = report(ValueError("x")), report(ValueError("x"), coroutines[0])
  said = (
    "Task exception was never retrieved\n…",
    "_GatheringFuture exception was never retrieved",
    "x",
  )
  records = [
    logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, text, None, None)
    for text in said
  ]
  passes = lambda: [bool(logging.getLogger("asyncio").filter(record)) for record in records]
  assert passes() == [True, True, True]
  with quiet_abandoned():
    assert passes() == [False, False, True]
    for one in (
      report(RuntimeError("Event loop is closed")), report(ValueError("x"), coroutines[1]), *others
    ):  # fmt: skip
      sys.unraisablehook(one)
  assert passed_on == list(others)
  assert sys.unraisablehook == passed_on.append
  for coroutine in coroutines:
    coroutine.close()
