"""Joining other processes, and what ends all of them: an error, a loss, one that never comes."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.training import joining
from tests.helpers import HELPERS, compiling, started_hosts


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", 2, None), "go together"),
    ((None, None, 0), "go together"),
    (("host", 2, 0), "'host' is not HOST:PORT"),
    (("host:1", 2, 2), "process_id"),
  ],
)
def test_arguments(arguments, message):
  with pytest.raises(UserError, match=message), joining.joined(*arguments):
    pass


@pytest.mark.processes
@pytest.mark.parametrize(
  ("number", "message"),
  [
    (0, "of 3 processes these have not joined within 2 s: 1, 2; start the same command on every"),
    (1, "process 0 has not been reached at 127.0.0.1:"),
  ],
)
def test_the_others_never_come(number, message):
  code = f"""
from gptneo_jax import cli
from gptneo_jax.training import joining
joining._JOIN_SECONDS = 2
def main():
  with joining.joined("{started_hosts.free_address()}", 3, {number}):
    print("joined")
cli.guarded(main)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith(f"error: {message}")
  assert done.stderr.count("\n") == 1


LOST = """
import os, signal, sys, time
from gptneo_jax.training import joining, multihost
address, number, lost, waits = sys.argv[1:]
with joining.joined(address, 3, int(number)):
  multihost.gather_objects(number)  # so that they are in the middle of something
  if number == lost:
    os.kill(os.getpid(), signal.SIGKILL)
  if waits == "waits":
    time.sleep(100)
  multihost.gather_objects(number)
"""


@pytest.mark.processes
@pytest.mark.parametrize("waits", ["waits", "computes"])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_process_that_is_killed_ends_the_others(lost, waits):
  address = started_hosts.free_address()
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", LOST, address, str(number), str(lost), waits],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for number in range(3)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=60)[1] for process in processes]
  for number, (process, err) in enumerate(zip(processes, outputs)):
    if number == lost:
      assert process.returncode == -signal.SIGKILL
      continue
    assert process.returncode == 1, err
    assert err.splitlines()[-1].startswith(
      f"error: process {lost} ({socket.gethostname()}) is gone without a word"
    )
    assert "Traceback" not in err
    if lost != 0:  # else JAX may say it too, before the last line
      assert err.count("\n") == 1, err


@pytest.mark.processes
def test_three_processes(tmp_path):
  address = started_hosts.free_address()
  script = HELPERS / "hosts_checks.py"
  processes = [
    subprocess.Popen(
      [sys.executable, script, address, str(number), tmp_path],
      env=os.environ | compiling.on_devices(2),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for number in range(3)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=100) for process in processes]
  stops = set()
  for process, (out, err) in zip(processes, outputs):
    assert process.returncode == 1, (out, err)
    found = json.loads(out.splitlines()[-1])  # and no advice to continue
    assert found["rows"]
    stops.add(found["stop"])
    assert found["gathered"] == [{"of": n, "as": "x" * (1 + n)} for n in range(3)]
    assert (
      err.splitlines()[-1] == f"error on process 0 ({socket.gethostname()}): {tmp_path} is full"
    )
    assert "Traceback" not in err
  assert len(stops) == 1 and 2 < min(stops) < 500  # all at one step
