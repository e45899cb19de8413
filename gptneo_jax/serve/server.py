"""Runs the app until a signal ends it: what has begun may finish, for a while."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from gptneo_jax.serve.batching import Generator

_LAST_WORDS = 5.0  # seconds in which handlers write what became of their rows


class _Server(uvicorn.Server):
  """uvicorn's, which ends by itself after a signal, so that the exit status is 0."""

  def __init__(self, config: uvicorn.Config, generator: Generator, drain_seconds: float):
    super().__init__(config)
    self._generator, self._drain_seconds = generator, drain_seconds

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for one in signals:
      loop.add_signal_handler(one, self._drain)
    try:
      yield
    finally:
      for one in signals:
        loop.remove_signal_handler(one)

  def _drain(self) -> None:
    """Takes no new requests; a second signal does not wait for those that have begun."""
    loop = asyncio.get_running_loop()
    loop.call_later(0 if self.should_exit else self._drain_seconds, self._generator.stop)
    self._generator.refuse()
    self.should_exit = True


def run(app: Any, listener: socket.socket, generator: Generator, drain_seconds: float) -> None:
  """Serves on a socket that listens already, until SIGINT or SIGTERM."""
  config = uvicorn.Config(
    app, log_level="warning", access_log=False,
    timeout_graceful_shutdown=int(drain_seconds + _LAST_WORDS) + 1,
  )  # fmt: skip
  asyncio.run(_Server(config, generator, drain_seconds).serve(sockets=[listener]))
