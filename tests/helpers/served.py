"""A server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

KEY = "secret"
POSITIONS = 128  # of the model that tests/serve/conftest.py serves
PROMPT = "the quick brown"


class Served(NamedTuple):
  """url: without a slash at its end. said: what the server printed before it was ready."""

  url: str
  process: subprocess.Popen
  said: str


@contextlib.contextmanager
def serving(checkpoint: str, *arguments: str) -> Iterator[Served]:
  """A server on any port that is free; it is killed at the end if it has not ended."""
  command = [sys.executable, "-m", "gptneo_jax.serve", "--checkpoint", checkpoint, "--port", "0"]
  process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
  try:
    said = ""
    assert process.stdout is not None
    while not (found := re.search(r"http://\S+", said)):
      line = process.stdout.readline()
      assert line, f"it ended with {process.wait()}: {said}"
      said += line
    yield Served(found[0], process, said)
  finally:
    process.kill()
    process.wait()


def curl(server: Served, path: str, body: Any, *arguments: str) -> tuple[int, str]:
  """Status and what was answered."""
  key = f"Authorization: Bearer {KEY}"
  sent = body if isinstance(body, str) else json.dumps(body)
  done = subprocess.run(
    ["curl", "-s", "-w", "\n%{http_code}", server.url + path, "-H", key, "-d", sent, *arguments],
    capture_output=True, text=True, timeout=60, check=True,
  )  # fmt: skip
  text, _, status = done.stdout.rpartition("\n")
  return int(status), text
