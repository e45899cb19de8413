"""The processes of a run meet at process 0's port before JAX does, and stay connected.

JAX waits for all processes without saying who is missing, and aborts where one is lost. Here
process 0 knows who has come and from which host; and the kernel closes the connection of a process
that is gone, however it ended, and within a minute that of a host that is gone.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any

from gptneo_jax.errors import UserError

# Without an answer of the other host: after 20 s it is asked, 4 times, every 10 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
_RETRY_SECONDS = 0.5


class Peers:
  """The processes that have met. Process 0 is connected with all others, they with it alone.

  Attributes:
    hosts: name of each process's host, by its number.
  """

  def __init__(self, hosts: dict[int, str], connections: dict[int, socket.socket]):
    self.hosts, self._connections = hosts, connections
    self._ends = selectors.DefaultSelector()  # of any number of connections
    for number, connection in connections.items():
      self._ends.register(connection, selectors.EVENT_READ, number)

  def lost(self, seconds: float) -> list[int]:
    """The connected processes that are gone; waits so long for one to be."""
    if not self._connections:
      time.sleep(seconds)
      return []
    # Nothing is sent after the meeting: what can be read is the end.
    return sorted(key.data for key, _ in self._ends.select(seconds))

  def named(self, numbers: Iterable[int]) -> str:
    """'process 2 (host-c)'."""
    return ", ".join(f"process {number} ({self.hosts[number]})" for number in sorted(numbers))


def meet(address: str, count: int, number: int, seconds: float) -> Peers:
  """Returns when all processes of a run have come, on every one of them; the port is free then.

  address: HOST:PORT of process 0. count: of all processes. number: of this one. seconds: to wait.
  Raises UserError, the same on all that have come, that names the numbers of those that have not.
  """
  deadline = time.monotonic() + seconds
  host, _, port = address.rpartition(":")
  if number == 0:
    return _receive(int(port), count, deadline, seconds)
  return _visit(host.strip("[]"), int(port), number, deadline, seconds)


def _receive(port: int, count: int, deadline: float, seconds: float) -> Peers:
  hosts, came = {0: socket.gethostname()}, dict[int, socket.socket]()
  problem = ""
  try:
    listening = _listen(port)
  except OSError as error:
    raise UserError(
      f"process 0 cannot listen on port {port}: {error.strerror}; choose another one that is free"
    ) from None
  with listening:
    while len(hosts) < count and not problem:
      listening.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection, _ = listening.accept()
      except TimeoutError:
        missing = ", ".join(str(one) for one in range(count) if one not in hosts)
        problem = (
          f"of {count} processes these have not joined within {seconds:g} s: {missing}; start the"
          " same command on every host, and look there for an error"
        )
        break
      _keep_alive(connection)
      said = _read(connection, deadline=time.monotonic() + 5)
      if not isinstance(said, dict) or said.get("gptneo_jax") is None:
        connection.close()  # someone else, who looks which ports are open
        continue
      other, host = said["gptneo_jax"], str(said["host"])
      came[other if other not in came else -1] = connection
      if other in hosts:
        problem = f"two processes are number {other}, on {hosts[other]} and {host}"
      elif not 0 < other < count:
        problem = f"a process on {host} is number {other}, and process 0 is of {count}"
      hosts[other] = host
  for connection in came.values():
    with contextlib.suppress(OSError):  # it is lost already, which `lost` will say
      _send(connection, {"problem": problem, "hosts": list(hosts.items())})
  if problem:
    raise UserError(problem)
  return Peers(hosts, came)


def _visit(host: str, port: int, number: int, deadline: float, seconds: float) -> Peers:
  connection = None
  while connection is None:
    try:
      connection = socket.create_connection((host, port), timeout=5)
    except OSError as error:
      if time.monotonic() > deadline:
        raise UserError(
          f"process 0 has not been reached at {host}:{port} within {seconds:g} s"
          f" ({error.strerror or error}); it must run there, and every host must reach that port"
        ) from None
      time.sleep(_RETRY_SECONDS)
  _keep_alive(connection)
  _send(connection, {"gptneo_jax": number, "host": socket.gethostname()})
  # Process 0 may have begun to wait just now.
  said = _read(connection, deadline=time.monotonic() + seconds + 60)
  if not isinstance(said, dict):
    raise UserError(f"process 0 at {host}:{port} has ended while the others were joining it")
  if said["problem"]:
    raise UserError(said["problem"])
  return Peers(dict(said["hosts"]), {0: connection})


def _listen(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(("", port), backlog=1024)


def _keep_alive(connection: socket.socket) -> None:
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name):  # not on every system
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, value: Any) -> None:
  connection.sendall(json.dumps(value).encode() + b"\n")


def _read(connection: socket.socket, deadline: float) -> Any:
  """The line of JSON that the other sends, None if it ends or sends anything else."""
  text = b""
  try:
    while not text.endswith(b"\n"):
      connection.settimeout(max(deadline - time.monotonic(), 0.001))
      if not (part := connection.recv(1 << 16)):
        return None
      text += part
    return json.loads(text)
  except (OSError, ValueError):
    return None
